"""Writes docs/reasons.md from the comments in translator/reasons.py: `python -m tests.reasons_page`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_REPOSITORY: Final = Path(__file__).resolve().parent.parent
SOURCE: Final = _REPOSITORY / "translator" / "reasons.py"
TARGET: Final = _REPOSITORY / "docs" / "reasons.md"

_GROUP: Final = re.compile(r"    # (\d+-\d+): (.*)")
_MEMBER: Final = re.compile(r"    ([A-Z][A-Z0-9_]*) = (\d+)(?:  # (.*))?")


def document(source: str) -> str:
    """The page: a table for each group of reasons, in the order and with the words of the source."""
    lines = [
        "# Why a request was not carried by the kernel",
        "",
        "<!-- written by `python -m tests.reasons_page`: change translator/reasons.py, not this file -->",
        "",
        "`xlb explain`, `xlb status` and `xlb top` name one of these for each request that Envoy carries; `NONE` means",
        "that the kernel carried it. Numbers are never used again.",
    ]
    for line in source.splitlines():
        if group := _GROUP.fullmatch(line):
            title = group[2].rstrip(".")
            lines += ["", f"## {group[1]}: {title}", "", "| number | name | |", "|---|---|---|"]
        elif (member := _MEMBER.fullmatch(line)) and member[2] != "0":
            lines.append(f"| {member[2]} | {member[1]} | {member[3] or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    TARGET.write_text(document(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
