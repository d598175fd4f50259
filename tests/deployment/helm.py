"""The chart, rendered by Helm's own code. It runs in a separate process, because Go's runtime
handles signals."""

import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

from tests.integration.installation import ROOT
from tests.programs import leave_out

CHART = ROOT / "deploy" / "helm" / "registration-worker"

Values = dict[str, Any]

#: Reads requests as JSON, one on each line: what to do, and the values. Answers in the same way.
_PROGRAM = """
import json, sys
from helm_python import Chart, HelmValuesError, lint
folder = sys.argv[1]
chart = Chart.load(folder)
for line in sys.stdin:
    action, values = json.loads(line)
    if action == "render":
        found = chart.render(values, name="rw", namespace="registrations")
    elif action == "lint":
        found = lint(folder, values, strict=True)
    else:
        try:
            chart.validate_schema(chart.merge_values(values))
            found = ""
        except HelmValuesError as error:
            found = str(error)
    print(json.dumps(found), flush=True)
"""


@cache
def _process() -> subprocess.Popen[str]:
    if find_spec("helm_python") is None:
        leave_out("the Helm chart: needs the package helm-python-sdk (Linux, x86-64)")
    # It ends with the tests, because its input is closed then.
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(CHART)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(action: str, values: Values) -> Any:
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{json.dumps([action, values])}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def render(values: Values) -> dict[str, str]:
    """The manifests that `helm install rw` makes, by the names of their templates."""
    found: dict[str, str] = _ask("render", values)
    return found


def refusal(values: Values) -> str:
    """Why `helm install` refuses these values; empty if it accepts them."""
    return str(_ask("check", values))


def lint(values: Values) -> list[str]:
    """What `helm lint --strict` finds, without hints."""
    report = _ask("lint", values)
    return [*report["errors"], *(one["error"] for one in report["messages"] if one["severity"] > 1)]
