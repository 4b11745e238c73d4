"""Numbers that the programs and user space share by memory: reading one costs no system call."""

from __future__ import annotations

from typing import Any

from bpf.loader import DataPath


class Shared:
    """xlb_shared and xlb_pool_state of one instance.  Raises BpfError when made."""

    def __init__(self, data_path: DataPath) -> None:
        layouts = data_path.layouts
        self._memory = data_path.map("xlb_shared").mmap(writable=True)
        self._shared: Any = layouts.struct("xlb_shared").from_buffer(self._memory)
        # As long as a multiple of 8 bytes, so they lie in the memory as in an array of C.
        state: Any = layouts.struct("xlb_pool_state")
        pools = data_path.map("xlb_pool_state")
        self._pool_memory = pools.mmap(writable=True)
        self._pools: Any = (state * pools.max_entries).from_buffer(self._pool_memory)

    @property
    def lost_events(self) -> int:
        """Events of the programs that did not fit into the ring, since the data path was loaded."""
        return int(self._shared.lost_events)

    @property
    def switches(self) -> int:
        """How many entries xlb_switches has: while 0, the hooks do not look."""
        return int(self._shared.switches)

    @switches.setter
    def switches(self, count: int) -> None:
        self._shared.switches = count

    def pool(self, number: int) -> tuple[int, int, int]:
        """Of a pool: requests in flight, requests ever, and how often no idle connection was there."""
        state = self._pools[number]
        return int(state.active), int(state.requests), int(state.empty)
