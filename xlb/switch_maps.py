"""Off-switches in the kernel's maps, and established connections that are to leave the kernel's way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from bpf.loader import DataPath
from bpf.maps import Map
from xlb.bypass import Switch, Table
from xlb.shared import Shared

_WORKLOAD_BITS: Final = 32


class SwitchMaps:
    """xlb_switches and xlb_ranges as the agent writes them, and XLB_OP_RELAY."""

    def __init__(self, data_path: DataPath, shared: Shared) -> None:
        layouts = data_path.layouts
        self._shared = shared
        self._switches = data_path.map("xlb_switches")
        self._ranges = data_path.map("xlb_ranges")
        self._conns = data_path.map("xlb_conns")
        self._control = data_path.program("xlb_control")
        self._switch_key: Any = layouts.struct("xlb_switch_key")
        self._range_key: Any = layouts.struct("xlb_range_key")
        self._conn: Any = layouts.struct("xlb_conn")
        self._request: Any = layouts.struct("xlb_request")
        self._range_numbers = layouts.enum("xlb_range")
        numbers = layouts.enum("xlb_switch")
        self._switch_numbers = {switch: numbers[f"XLB_SWITCH_{switch.name}"] for switch in Switch}
        self._client = layouts.enum("xlb_role")["XLB_ROLE_C"]
        self._ever = layouts.enum("xlb_relayed")["XLB_RELAYED_EVER"]
        self._relay = layouts.enum("xlb_op")["XLB_OP_RELAY"]

    def set(self, wanted: Table) -> None:
        """Have the hooks go by this table, and nothing else.  Raises BpfError."""
        switches = {self._key(*key): self._value(value) for key, value in wanted.switches.items()}
        ranges = {self._prefix(*key): _u32(self._range_numbers[value.value]) for key, value in wanted.ranges.items()}
        # A switch that asks for ranges must find them.
        _add(self._ranges, ranges)
        _add(self._switches, switches)
        self._shared.switches = len(switches)
        _remove_others(self._switches, switches)
        _remove_others(self._ranges, ranges)

    def _key(self, workload: int, port: int) -> bytes:
        return bytes(self._switch_key(workload=workload, port=port))

    def _prefix(self, workload: int, bits: int, address: bytes) -> bytes:
        key = self._range_key(bits=_WORKLOAD_BITS + bits, workload=workload)
        key.address.b[:] = address
        return bytes(key)

    def _value(self, switch: Switch) -> bytes:
        return _u32(sum(number for one, number in self._switch_numbers.items() if one in switch))

    def leave(self, chosen: Callable[[int, int], bool], *, leave: bool) -> int:
        """Have established connections go to Envoy from their next request on, or not any more.

        A connection that has gone there stays.  Takes about a microsecond for each connection there is.

        :param chosen: whether a connection is meant, by its view and the port that it was made to
        :returns: how many were told so
        Raises BpfError.
        """
        request = self._request(op=self._relay, flags=int(leave))
        told = 0
        for _, raw in self._conns.items():  # noqa: PERF102
            conn = self._conn.from_buffer_copy(raw)
            if conn.role != self._client or conn.relayed == self._ever or bool(conn.leave) == leave:
                continue
            if chosen(conn.view, conn.original_port):
                request.client, request.arg = conn.self, 0
                self._control.run(request)
                told += request.arg
        return told


def _add(into: Map, wanted: Mapping[bytes, bytes]) -> None:
    there = dict(into.items())
    for key, value in wanted.items():
        if there.get(key) != value:
            into.update(key, value)


def _remove_others(there: Map, wanted: Mapping[bytes, bytes]) -> None:
    for key in [key for key in there.keys() if key not in wanted]:  # noqa: SIM118
        there.delete(key)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
