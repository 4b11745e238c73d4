"""Pools of connections to Envoy: one for each captured destination of a view, made when a request first needs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bpf.maps import BpfError
from xlb.keeper.estate import LeadEstate, PoolEstate
from xlb.keeper.kernel import Destination, Kernel, PoolTarget
from xlb.keeper.loop import Loop, complain
from xlb.keeper.pool import Pool
from xlb.keeper.pools import Pools
from xlb.keeper.sockets import Endpoint

_FIRST: Final = 2  # connections a new pool begins with
_REFUSED_FOR: Final = 1.0  # seconds for which one that cannot be served is not looked at again
_MOST_REFUSED: Final = 1024


@dataclass(slots=True)
class _Lead:
    """A destination that has a pool."""

    pool: Pool
    envoy: Endpoint
    used: float  # when it was last seen in use
    requests: int  # the pool's counter at that time


class Destinations:
    """Which pool leads to Envoy for which destination."""

    def __init__(self, loop: Loop, kernel: Kernel, pools: Pools) -> None:
        self._loop = loop
        self._kernel = kernel
        self._pools = pools
        limits = kernel.codes.limits
        self._free = list(range(limits.max_pools - limits.destinations, limits.max_pools))
        self._leads: dict[Destination, _Lead] = {}
        self._refused: dict[Destination, float] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._leads)

    def start(self) -> None:
        """Remove what a predecessor has left.  Raises BpfError."""
        self._kernel.clear_destinations()
        for number in self._free:
            self._kernel.set_pool_target(number, None)

    @property
    def free(self) -> tuple[int, ...]:
        """Numbers that lead nowhere, that which has been free for the longest time first."""
        return tuple(self._free)

    @property
    def generation(self) -> int:
        return self._generation

    def save(self, pools: Iterable[PoolEstate]) -> tuple[LeadEstate, ...]:
        """For a successor.

        :param pools: as `Pools.save` gave them
        """
        found: list[LeadEstate] = []
        for index, pool in enumerate(pools):
            lead = self._leads.get(pool.destination) if pool.destination is not None else None
            if lead is not None and not pool.given_up:
                found.append(LeadEstate(index, lead.used, lead.requests))
        return tuple(found)

    def restore(self, left: Iterable[LeadEstate], pools: Sequence[Pool], free: Iterable[int], generation: int) -> None:
        """Of a predecessor, in place of `start`.

        :param pools: as `Pools.restore` gave them
        """
        for one in left:
            pool = pools[one.pool]
            if pool.destination is not None:
                self._leads[pool.destination] = _Lead(pool, pool.target.endpoint, one.used, one.requests)
        self._free = list(free)
        self._generation = generation

    def want(self, client: int) -> None:
        """A request of C has to go to Envoy, and no pool leads there."""
        conn = self._kernel.conn(client)
        if conn is None:
            return
        destination = self._kernel.destination_of(conn)
        now = self._loop.now
        if destination in self._leads or self._refused.get(destination, 0.0) > now:
            return
        envoy = self._kernel.envoy_of(destination)
        number = self._number() if envoy is not None else None
        if envoy is None or number is None:
            if len(self._refused) >= _MOST_REFUSED:
                self._refused.clear()
            self._refused[destination] = now + _REFUSED_FOR
            return
        self._lead(destination, envoy, number)

    def _number(self) -> int | None:
        """A free number; that of the idle destination not used for the longest time, if there is no other."""
        if not self._free:
            idle = [
                (lead.used, destination)
                for destination, lead in self._leads.items()
                if not self._kernel.pool_state(lead.pool.number).active
            ]
            if not idle:
                return None
            self._drop(min(idle, key=lambda item: item[0])[1])
        # The one that has been free for the longest time: what is left of its last use has gone.
        return self._free.pop(0)

    def _lead(self, destination: Destination, envoy: Endpoint, number: int) -> None:
        self._generation = self._generation + 1 & 0xFFFFFFFF
        target = PoolTarget(envoy, self._generation)
        try:
            self._kernel.set_pool_target(number, target)
            pool = self._pools.use(number, target, destination)
            for _ in range(_FIRST):
                self._pools.open(pool)
            self._kernel.lead(destination, number)
        except BpfError:
            complain(f"pool to Envoy for {destination.original}")
            self._free.append(number)
            return
        state = self._kernel.pool_state(number)
        self._leads[destination] = _Lead(pool, envoy, self._loop.now, state.requests)

    def _drop(self, destination: Destination) -> None:
        lead = self._leads.pop(destination)
        self._kernel.lead_no_more(destination)
        self._pools.give_up(lead.pool)
        self._kernel.set_pool_target(lead.pool.number, None)
        self._free.append(lead.pool.number)

    def refresh(self) -> None:
        """The captures have changed: drop the destinations that lead elsewhere now."""
        self._refused.clear()
        for destination, lead in list(self._leads.items()):
            if self._kernel.envoy_of(destination) != lead.envoy:
                self._drop(destination)

    def look_after(self) -> None:
        """Once a second: who has been in use?"""
        for lead in self._leads.values():
            requests = self._kernel.pool_state(lead.pool.number).requests
            if requests != lead.requests:
                lead.requests = requests
                lead.used = self._loop.now

    def close_all(self) -> None:
        for destination in list(self._leads):
            self._drop(destination)
