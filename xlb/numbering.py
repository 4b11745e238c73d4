"""All numbers that the agent gives out, and what of them is to be remembered by the next agent.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from translator.model import EndpointRule
from xlb.numbers import Numbers
from xlb.state import State, WorkloadState

FIRST_PORT: Final = 15100
LAST_PORT: Final = 32767

# How long a freed number rests, in seconds.  A connection remembers its view and its image as long as it is open.
_VIEW_REST: Final = 600.0
_IMAGE_REST: Final = 3600.0
_PORT_REST: Final = 60.0
# The keeper has closed the connections of the old endpoint by then, and its requests are over or retired.
_POOL_REST: Final = 10.0

Named = tuple[str, str]  # view, name of a thing within it
Endpoint = tuple[str, int]  # IP literal, port


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many there are of each; index 0 is never given out."""

    views: int
    images: int
    pools: int
    cursors: int


class Numbering:
    """Views, image slots, ports of the node Envoy, round-robin cursors and pools."""

    def __init__(self, sizes: Sizes) -> None:
        self.views: Numbers[str] = Numbers("view", 1, sizes.views - 1, rest=_VIEW_REST)
        self.images: Numbers[Named] = Numbers("image slot", 1, sizes.images - 1, rest=_IMAGE_REST)
        self.ports: Numbers[Named] = Numbers("port for the node Envoy", FIRST_PORT, LAST_PORT, rest=_PORT_REST)
        self.cursors: Numbers[Named] = Numbers("round-robin cursor", 1, sizes.cursors - 1, rest=_POOL_REST)
        self.pools: Numbers[Endpoint] = Numbers("pool", 1, sizes.pools - 1, rest=_POOL_REST)

    @property
    def revision(self) -> int:
        """Differs whenever a number was given out or taken back."""
        return sum(n.revision for n in (self.views, self.images, self.ports, self.cursors, self.pools))

    def restore(self, state: State, now: float) -> None:
        """Begin with what an earlier agent gave out.  Raises ValueError."""
        self.views.restore(state.views, now)
        self.images.restore(flat(state.images), now)
        self.ports.restore(flat(state.ports), now)
        self.cursors.restore(flat(state.cursors), now)
        self.pools.restore(pools_from_text(state.pools), now)

    def save(self, address: str, workloads: tuple[WorkloadState, ...]) -> State:
        """What the next agent has to know."""
        return State(
            address=address,
            workloads=workloads,
            views=dict(self.views.taken),
            images=by_view(self.images.taken),
            ports=by_view(self.ports.taken),
            cursors=by_view(self.cursors.taken),
            pools=pools_as_text(self.pools.taken),
        )

    def ids(self, view: str, now: float) -> ViewIds:
        """What the image builder of a view asks."""
        return ViewIds(self, view, now)

    def free_but(
        self, view: str, now: float, *, images: Iterable[str], ports: Iterable[str], cursors: Iterable[str]
    ) -> list[int]:
        """Take back what a view has of images, ports and cursors, except for these names.

        :returns: the image slots that were taken back
        """
        kept = ((self.images, images), (self.ports, ports), (self.cursors, cursors))
        freed = [_free_but(numbers, view, frozenset(names), now) for numbers, names in kept]
        return freed[0]

    def free_strangers(self, keys: Iterable[str], names: frozenset[str] | set[str], now: float) -> list[int]:
        """Take back everything of views but these (their identity keys, and their names), except for pools.

        :returns: the numbers of the views
        """
        for numbers in (self.images, self.ports, self.cursors):
            numbers.free([named for named in numbers.taken if named[0] not in names], now)
        gone = self.views.taken.keys() - frozenset(keys)
        return [*self.views.free(gone, now).values()]

    def unused_pools(self, used: Iterable[Endpoint], now: float) -> list[int]:
        """Take back the pools of all endpoints but these.  :returns: their numbers"""
        gone = self.pools.taken.keys() - frozenset(used)
        return [*self.pools.free(gone, now).values()] if gone else []


class ViewIds:
    """`translator.image.Ids` for one view.  `new_pools` collects the endpoints that had no pool before."""

    def __init__(self, numbering: Numbering, view: str, now: float) -> None:
        self._numbering = numbering
        self._view = view
        self._now = now
        self.new_pools: dict[Endpoint, int] = {}

    def pool(self, endpoint: EndpointRule) -> int:
        """Raises OutOfNumbers."""
        key = (endpoint.address, endpoint.port)
        pools = self._numbering.pools
        number = pools.get(key)
        if number is None:
            number = self.new_pools[key] = pools.take(key, self._now)
        return number

    def round_robin(self, cluster: str) -> int:
        """Raises OutOfNumbers."""
        return self._numbering.cursors.take((self._view, cluster), self._now)


def _free_but(numbers: Numbers[Named], view: str, kept: frozenset[str], now: float) -> list[int]:
    gone = [key for key in numbers.taken if key[0] == view and key[1] not in kept]
    return [*numbers.free(gone, now).values()] if gone else []


def by_view(taken: Mapping[Named, int]) -> dict[str, dict[str, int]]:
    """As `xlb.state.State` keeps them."""
    made: dict[str, dict[str, int]] = {}
    for (view, name), number in taken.items():
        made.setdefault(view, {})[name] = number
    return made


def flat(nested: Mapping[str, Mapping[str, int]]) -> dict[Named, int]:
    """The inverse of `by_view`."""
    return {(view, name): number for view, inner in nested.items() for name, number in inner.items()}


def pools_as_text(taken: Mapping[Endpoint, int]) -> dict[str, int]:
    return {f"{address} {port}": number for (address, port), number in taken.items()}


def pools_from_text(texts: Mapping[str, int]) -> dict[Endpoint, int]:
    """Raises ValueError."""
    made: dict[Endpoint, int] = {}
    for text, number in texts.items():
        address, _, port = text.partition(" ")
        made[address, int(port)] = number
    return made
