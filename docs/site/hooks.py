"""What MkDocs does besides: the repository's pages outside docs/, and links between them all.

Pages are written for a reader of the repository, whose links are paths of files. In the site each
leads to the page or the file of the same name; one that leads nowhere fails the build (`strict`).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

#: What lies beside docs/ and belongs to the site, too.
BESIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/README.md",
    "examples/*.csv",
    "examples/*.ndjson",
    "examples/python/*.py",
    "examples/node/*.mjs",
    "examples/node/package.json",
)

_LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)")
_FENCE = re.compile(r"^(\s*(?:```|~~~)\w+) (?!title=)(.+)$")
_NESTED = re.compile(r"^( +)(?=[-*] )")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies beside docs/."""
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn what the repository's readers see into what MkDocs understands."""
    here = Path(page.file.abs_src_path).resolve().relative_to(ROOT).as_posix()
    lines, fenced = [], False
    for line in markdown.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
            lines.append(_FENCE.sub(_titled, line))
        elif fenced:
            lines.append(line)
        else:
            # Lists are nested by two blanks in the pages, and by four in Python-Markdown.
            nested = _NESTED.sub(r"\1\1", line)
            lines.append(_LINK.sub(lambda link: link[1] + _target(here, link[2]), nested))
    return "\n".join(lines)


def _titled(fence: re.Match[str]) -> str:
    """A word behind the language is a file's name, or says that a command stays."""
    return fence[1] if fence[2] == "server" else f'{fence[1]} title="{fence[2]}"'


def _target(here: str, link: str) -> str:
    """A link of the file `here` as one between pages of the site."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    start = posixpath.dirname(here.removeprefix("docs/"))
    return posixpath.relpath(path.removeprefix("docs/"), start or ".")
