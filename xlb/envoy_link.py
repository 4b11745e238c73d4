"""What the node Envoy is given: the parts of all views as one set, over our ADS server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from translator.envoy import NodeResources, merge
from xds_server.server import AdsServer, Nacked

_ACK_S: Final = 10.0


class EnvoyRefusedError(Exception):
    """Envoy does not take a set; one line.  Raised for silence too: then the set may or may not be in force."""


class EnvoyLink:
    """The parts that are in force, by view, and the way to change them."""

    def __init__(self, path: Path, timeout: float = _ACK_S) -> None:
        self._server = AdsServer()
        self._path = path
        self._timeout = timeout
        self._parts: dict[str, NodeResources] = {}
        self._serving = False
        self._serial = 0

    async def serve(self) -> None:
        """Begin to serve, if that has not been done.  Raises OSError.

        An Envoy that was taken over keeps what it has until then; so this comes when all its views are there again.
        """
        if not self._serving:
            await self._server.start(unix=self._path)
            self._serving = True

    async def stop(self) -> None:
        await self._server.stop()
        self._serving = False

    @property
    def connected(self) -> bool:
        return bool(self._server.streams)

    @property
    def in_force(self) -> Mapping[str, NodeResources]:
        return self._parts

    def offer(self, parts: Mapping[str, NodeResources]) -> bool:
        """Have Envoy given these views' parts beside the others'.  :returns: False if it has exactly that already

        Raises ValueError if the parts do not go together.
        """
        if all(_equal(self._parts.get(view), part) for view, part in parts.items()):
            # What is said about them may differ all the same.
            self._parts.update(parts)
            return False
        self._set({**self._parts, **parts})
        return True

    async def settled(self, parts: Mapping[str, NodeResources]) -> Nacked | None:
        """Wait until what was offered is in force.  :returns: None, or Envoy's refusal (then `take_back`)

        Raises EnvoyRefusedError when it does not answer in time.
        """
        await self.serve()
        try:
            result = await self._server.wait_acked(self._server.version, self._timeout)
        except TimeoutError:
            what = "has not answered" if self.connected else "is not connected"
            raise EnvoyRefusedError(f"the node Envoy {what} within {self._timeout:g} s: see envoy.log") from None
        if isinstance(result, Nacked):
            return result
        self._parts.update(parts)
        return None

    def take_back(self) -> None:
        """Give Envoy again what is in force."""
        self._set(self._parts)

    def withdraw(self, view: str) -> None:
        """Give Envoy what is in force without a view; nobody uses it any more, so nobody waits."""
        if self._parts.pop(view, None) is not None:
            self._set(self._parts)

    def _set(self, parts: Mapping[str, NodeResources]) -> None:
        self._serial += 1
        self._server.set_snapshot(merge(parts.values()).resources, str(self._serial))


def pushed(parts: Mapping[str, NodeResources]) -> Mapping[str, Mapping[str, Message]]:
    """The resources of several parts: type URL -> name -> message."""
    return merge(parts.values()).resources


def _equal(old: NodeResources | None, new: NodeResources) -> bool:
    return old is not None and (old is new or old.resources == new.resources)
