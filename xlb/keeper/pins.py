"""The pinned maps and programs of an instance, by name.

Not `bpf.loader`, which knows the names too: it loads and attaches, and what it imports for that would double our size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bpf import layout
from bpf.layout import Layouts
from bpf.maps import BpfError, Map
from bpf.program import Program

_BPFFS: Final = Path("/sys/fs/bpf")


class PinsError(Exception):
    """There is no data path of that instance; the message says what to do."""


class Pins:
    """Maps and programs stay open until the process ends."""

    def __init__(self, instance: str) -> None:
        """Raises PinsError or bpf.layout.LayoutError."""
        self._folder = _BPFFS / f"xlb-{instance}"
        if not (self._folder / "xlb_config").exists():
            raise PinsError(f"no data path at {self._folder}: start the agent of instance {instance} first")
        self.layouts: Layouts = layout.installed()

    def map(self, name: str) -> Map:
        """Raises PinsError."""
        try:
            return Map.open(self._folder / name)
        except BpfError as error:
            raise PinsError(f"{error.strerror}: restart the agent, which loads the data path anew") from error

    def program(self, name: str) -> Program:
        """Raises PinsError."""
        try:
            return Program.open(self._folder / f"prog_{name}")
        except BpfError as error:
            raise PinsError(f"{error.strerror}: restart the agent, which loads the data path anew") from error
