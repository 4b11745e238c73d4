"""Printing for a plain terminal of 100 columns: colours and moving progress only where there is a terminal."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest
from typing import Final, TextIO

WIDTH: Final = 100


class Style(Enum):
    """ANSI attributes; empty on anything but a terminal."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    GREEN = "32"
    YELLOW = "33"
    RED = "31"
    CYAN = "36"


class Screen:
    """Headings, progress lines and tables on one stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._terminal = self._stream.isatty()
        self._start = time.monotonic()
        self._moving = False

    def paint(self, text: str, style: Style) -> str:
        if not self._terminal or style is Style.PLAIN:
            return text
        return f"\x1b[{style.value}m{text}\x1b[0m"

    def line(self, text: str = "", style: Style = Style.PLAIN) -> None:
        """One full line; it takes the place of a progress line."""
        if self._moving:
            self._stream.write("\r\x1b[2K")
            self._moving = False
        self._stream.write(self.paint(text, style).rstrip() + "\n")
        self._stream.flush()

    def heading(self, text: str) -> None:
        elapsed = f"{time.monotonic() - self._start:5.1f} s"
        rule = "-" * max(4, WIDTH - len(text) - len(elapsed) - 5)
        self.line()
        self.line(f"{self.paint(text, Style.BOLD)} {self.paint(rule, Style.DIM)} {self.paint(elapsed, Style.DIM)}")

    def progress(self, text: str) -> None:
        """What is being done just now; shown on a terminal only, and overwritten by what comes next."""
        if self._terminal:
            self._stream.write("\r\x1b[2K" + self.paint(f"  ... {text}"[: WIDTH - 1], Style.DIM))
            self._stream.flush()
            self._moving = True

    def done(self, text: str) -> None:
        """A step that has been done."""
        self.line(f"  {self.paint('ok', Style.GREEN)}  {text}")

    def bad(self, text: str) -> None:
        self.line(f"  {self.paint('!!', Style.RED)}  {text}")

    def table(self, rows: Sequence[Sequence[str]], styles: Sequence[Style], limits: Sequence[int]) -> None:
        """Columns to the left under a heading row.

        `styles[i]` colours column i below the heading; a cell longer than `limits[i]` is wrapped, and its lines stay
        in their column.
        """
        wrapped = [[_wrap(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in rows]
        widths = [max(len(line) for row in wrapped for line in row[column]) for column in range(len(limits))]
        for number, cells in enumerate(wrapped):
            for part in zip_longest(*cells, fillvalue=""):
                self.line(
                    "  "
                    + "  ".join(
                        self.paint(text, style if number else Style.DIM) + " " * (width - len(text))
                        for text, style, width in zip(part, styles, widths, strict=True)
                    )
                )


def _wrap(cell: str, limit: int) -> list[str]:
    return [part for line in cell.split("\n") for part in textwrap.wrap(line, limit, subsequent_indent="  ") or [""]]
