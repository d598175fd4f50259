"""The log of a terminal shows every character of other programs' texts, and obeys none."""

import subprocess
import sys
from pathlib import Path

#: Codes that move the cursor, set the title, ring, turn the direction of writing, begin a line or
#: a control sequence (C1), or are unprintable.
CODES = "\x1b[31m\x1b]0;t\x07\x9b31m\x85\u202e\u2028\u200b\x00\x7f\r\n\udc80"

#: Every way in which a text gets into a line.
WRITES = f"""
import logging, warnings
import structlog
from regworker.settings import Settings
from worker.telemetry.logs import configure_logging, take_over

CODES = {CODES!a}
settings = Settings.load(log_format="console", sealing_keys="none")
configure_logging(settings)
take_over(settings)
logging.getLogger("other" + CODES).warning("message" + CODES + "end")
logging.getLogger("celery.worker.consumer").warning("Connected to %s", "server" + CODES)
log = structlog.get_logger()
log.warning("event" + CODES, field=CODES, fields=[CODES], more={{CODES: CODES}}, **{{CODES: 1}})
warnings.warn("warned" + CODES)
code = compile("raise ValueError()", "file" + CODES.replace("\\0", ""), "exec")
try:
    exec(code)
except ValueError:
    log.exception("failed")
"""


def test_control_codes_of_others_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    """In messages, names, fields, warnings and tracebacks; each line is one line."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES], cwd=tmp_path, capture_output=True, timeout=60, check=True
    )
    lines = done.stderr.decode().split("\n")
    assert all(line.isprintable() for line in lines), lines
    text = "\n".join(lines)
    for shown in ("message\\x1b[31m", "server\\x1b[31m", "event\\x1b[31m", "file\\x1b[31m"):
        assert shown in text
    assert text.count("\\u202e") > 5
    assert not any(line.startswith("end") for line in lines)
