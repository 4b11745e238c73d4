"""What an instance keeps in the kernel, counted: nothing may be there that its pools do not explain."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bpf.loader import DataPath


@dataclass(frozen=True, slots=True)
class Connection:
    """One entry of xlb_conns, the fields that tests look at."""

    cookie: int
    role: str
    pool: int
    state: int
    peer: int
    alt: int
    in_flight: int
    in_request: int
    relayed: int
    corked: int
    spilled: int


@dataclass(frozen=True, slots=True)
class Census:
    """All connections of an instance, and the maps that point at them."""

    connections: Mapping[int, Connection]
    pairs: int
    sockets: frozenset[int]
    active: Mapping[int, int]  # pool -> requests in flight; zeros left out
    half_closed: int

    def roles(self) -> Counter[str]:
        return Counter(connection.role for connection in self.connections.values())

    def with_role(self, role: str) -> list[Connection]:
        return [connection for connection in self.connections.values() if connection.role == role]

    def unexplained(self) -> list[str]:
        """What an instance without clients must not have, in words; empty: only idle pools and injectors are left."""
        told = [
            f"{connection.role} {connection.cookie} is still there: {connection}"
            for connection in self.connections.values()
            if connection.role not in ("U", "B", "X")
        ]
        for backend in self.with_role("B"):
            upstream = self.connections.get(backend.alt)
            if upstream is None or upstream.role != "U" or upstream.alt != backend.cookie:
                told.append(f"B {backend.cookie} has no U: {backend}")
            if backend.state != 0 or backend.peer:
                told.append(f"B {backend.cookie} is not idle: {backend}")
            if backend.cookie not in self.sockets:
                told.append(f"B {backend.cookie} is in no socket map")
        told += [f"X {one.cookie} still has a target: {one}" for one in self.with_role("X") if one.peer]
        if strange := self.sockets - {c.cookie for c in self.connections.values() if c.role in ("B", "X")}:
            told.append(f"xlb_sockets has {len(strange)} sockets that nobody owns: {sorted(strange)[:5]}")
        if self.pairs != self.roles()["U"]:
            told.append(f"xlb_pairs has {self.pairs} entries, for {self.roles()['U']} pooled connections")
        if self.active:
            told.append(f"requests in flight by pool: {dict(self.active)}")
        if self.half_closed:
            told.append(f"half_closed is {self.half_closed}")
        return told


class KernelState:
    """Read access to the maps of a running instance."""

    def __init__(self, instance: str) -> None:
        """Raises LoadError if the instance has no data path."""
        self._path = DataPath.open(instance)
        layouts = self._path.layouts
        self._connection: Any = layouts.struct("xlb_conn")
        self._pool: Any = layouts.struct("xlb_pool_state")
        self._shared: Any = layouts.struct("xlb_shared")
        self._roles = {number: name.removeprefix("XLB_ROLE_") for name, number in layouts.enum("xlb_role").items()}

    def map_ids(self) -> dict[str, int]:
        """Kernel-wide ids of the instance's maps, to look afterwards whether they are gone."""
        return {
            name.name: self._path.map(name.name).id
            for name in self._path.pin_folder.iterdir()
            if name.name.startswith("xlb_")
        }

    def census(self) -> Census:
        """Not atomic: look again before judging."""
        connections = {}
        for _, raw in self._path.map("xlb_conns").items():  # noqa: PERF102
            entry = self._connection.from_buffer_copy(raw)
            connections[entry.self] = Connection(
                entry.self,
                self._roles.get(entry.role, str(entry.role)),
                entry.pool,
                entry.state,
                entry.peer,
                entry.alt,
                entry.in_flight,
                entry.in_request,
                entry.relayed,
                entry.corked,
                entry.spilled,
            )
        sockets = frozenset(int.from_bytes(key, "little") for key in self._path.map("xlb_sockets").keys())  # noqa: SIM118
        return Census(
            connections,
            sum(1 for _ in self._path.map("xlb_pairs").keys()),  # noqa: SIM118
            sockets,
            self._active(),
            self._only("xlb_shared", self._shared).half_closed,
        )

    def lost_events(self) -> int:
        return int(self._only("xlb_shared", self._shared).lost_events)

    def close(self) -> None:
        self._path.close()

    def _active(self) -> dict[int, int]:
        step = (ctypes.sizeof(self._pool) + 7) // 8 * 8
        with self._path.map("xlb_pool_state").mmap(writable=False) as states:
            numbers = (
                (at // step, int.from_bytes(states[at : at + 4], "little"))
                for at in range(0, len(states) - step + 1, step)
            )
            return {pool: active for pool, active in numbers if active}

    def _only(self, name: str, struct: Any) -> Any:
        raw = self._path.map(name).lookup(bytes(4))
        assert raw is not None
        return struct.from_buffer_copy(raw)
