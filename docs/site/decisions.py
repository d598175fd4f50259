"""`make decisions`: number the records of docs/decisions.md, and write its contents.

Two changes that were made at the same time may use one number. The later record in the file gets
the next free number; links to it in the file are not changed.
"""

import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "decisions.md"


def anchor(heading: str) -> str:
    """The name of a heading, as Git forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def numbered(text: str) -> str:
    """The document with a number of its own for each record, and its contents."""
    taken: set[int] = set()
    free = max(map(int, re.findall(r"^### (\d+)\. ", text, re.MULTILINE)))

    def number(match: re.Match[str]) -> str:
        nonlocal free
        found = int(match[1])
        if found in taken:
            found = free = free + 1
        taken.add(found)
        return f"### {found}. "

    text = re.sub(r"^### (\d+)\. ", number, text, flags=re.MULTILINE)
    head, _, body = text.partition("## Contents\n")
    subjects = re.split(r"^## (.+)$", body[body.index("\n## ") :], flags=re.MULTILINE)
    contents = ""
    for subject, records in zip(subjects[1::2], subjects[2::2], strict=True):
        if titles := re.findall(r"^### (.+)$", records, re.MULTILINE):
            lines = "".join(f"- [{title}](#{anchor(title)})\n" for title in titles)
            contents += f"\n**{subject}**\n\n{lines}"
    return f"{head}## Contents\n{contents}" + body[body.index("\n## ") :]


if __name__ == "__main__":
    FILE.write_text(numbered(FILE.read_text("utf-8")), "utf-8")
