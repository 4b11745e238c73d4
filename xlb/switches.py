"""The off-switches of an instance: which there are, and putting them in force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from xlb.bypass import Bypass, BypassError, Subject, bypass_of, from_document, table
from xlb.switch_maps import SwitchMaps

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Switches:
    """Bypasses by their key, and the kernel's maps of them."""

    def __init__(self, maps: SwitchMaps) -> None:
        self._maps = maps
        self._bypasses: dict[tuple[str | None, int | None], Bypass] = {}

    @property
    def bypasses(self) -> tuple[Bypass, ...]:
        return tuple(self._bypasses.values())

    def restore(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Begin with those of an earlier agent; `put` puts them in force."""
        for document in documents:
            try:
                bypass = from_document(dict(document))
            except BypassError as error:
                _log.warning("bypass_ignored", reason=str(error), remedy="add it again with `xlb bypass add`")
                continue
            self._bypasses[bypass.key] = bypass

    def put(self, subjects: Iterable[Subject]) -> None:
        """Have connect hooks go by what there is now, for these workloads.  Raises BpfError."""
        self._maps.set(table(self.bypasses, subjects))

    def add(self, bypass: Bypass, subjects: Iterable[Subject]) -> None:
        """In force for connections from now on.  Raises BpfError; then it is as before, as far as it can be."""
        before = dict(self._bypasses)
        self._bypasses[bypass.key] = bypass
        self._put_or(before, subjects)

    def remove(self, bypass: Bypass, subjects: Iterable[Subject]) -> bool:
        """Whether there was one of that key; new connections are as if there had been none.  Raises BpfError."""
        before = dict(self._bypasses)
        if self._bypasses.pop(bypass.key, None) is None:
            return False
        self._put_or(before, subjects)
        return True

    def _put_or(self, before: dict[tuple[str | None, int | None], Bypass], subjects: Iterable[Subject]) -> None:
        try:
            self.put(subjects)
        except BaseException:
            self._bypasses = before
            raise

    def bypasses_of(self, workload: str) -> tuple[Bypass, ...]:
        """Those that cover connections of NAMESPACE/NAME."""
        return tuple(one for one in self.bypasses if one.workload in (None, workload))

    def of(self, workload: str, port: int) -> Bypass | None:
        """What decides about connections of NAMESPACE/NAME to a port."""
        return bypass_of(self.bypasses, workload, port)

    async def leave(self, bypass: Bypass, workloads: Mapping[int, str], *, leave: bool) -> int:
        """Have the established connections that a bypass covers go to Envoy from their next request on, or no more.

        :param workloads: NAMESPACE/NAME by the number of the view
        :returns: how many
        Raises BpfError.
        """

        def chosen(view: int, port: int) -> bool:
            return bypass.covers(workloads.get(view, ""), port)

        return await asyncio.to_thread(self._maps.leave, chosen, leave=leave)
