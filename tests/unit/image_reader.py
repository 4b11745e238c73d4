"""Reads a kernel image as the C matcher does: by cell number, hash and list, with nothing but the image at hand."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from translator.image import CELL, MAGIC, Layouts
from translator.limits import Limits
from translator.model import LbPolicy
from translator.reasons import Reason
from translator.request import Request

MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the matcher says: `cluster` is a position in the sorted names, `pools` those it may choose from."""

    reason: Reason
    route: int | None = None
    cluster: int | None = None
    lb: LbPolicy | None = None
    pools: tuple[int, ...] = ()
    round_robin: int | None = None


class ImageReader:
    """One image; `match` is what the kernel does once the head is known to be in order."""

    def __init__(self, image: bytes, layouts: Layouts, limits: Limits) -> None:
        assert len(image) % CELL == 0
        self._image = image
        self._layouts = layouts
        self._limits = limits
        self._kinds = layouts.enum("xlb_key_kind")
        self.header = self.cell("xlb_image_header", 0)
        assert self.header.magic == MAGIC
        assert self.header.cells * CELL == len(image)

    def cell(self, struct: str, number: int) -> Any:
        return self._layouts.struct(struct).from_buffer_copy(self._image, number * CELL)

    def looks_at(self, name: str) -> bool:
        return self._find("XLB_KEY_HEADER_NAME", 0, name.encode()) is not None

    def match(self, request: Request, random: int) -> Outcome:
        header = self.header
        if header.reason:
            return Outcome(Reason(header.reason))
        number = self._virtual_host(request.host.strip(" \t"))
        if not number:
            return Outcome(Reason.NO_VIRTUAL_HOST)
        vhost = self.cell("xlb_vhost", number)
        if vhost.reason:
            return Outcome(Reason(vhost.reason))
        slots = self._slots(request)
        path = request.path.partition("?")[0].encode("latin-1")
        for candidate in self._list(self._candidates(vhost, path)):
            route = self.cell("xlb_route", candidate)
            if route.flags & self._layouts.enum("xlb_route_flags")["XLB_ROUTE_UNDECIDED"]:
                return Outcome(Reason(route.reason), route.index)
            assert route.predicates <= self._limits.predicates
            if all(self._holds(route.predicate + i, slots) for i in range(route.predicates)):
                return self._act(route, random)
        return Outcome(Reason.NO_ROUTE)

    def _virtual_host(self, host: str) -> int:
        header, flags = self.header, self._layouts.enum("xlb_image_flags")
        if header.flags & flags["XLB_IMAGE_ANY_HOST"]:
            return int(header.default_vhost)
        if header.flags & flags["XLB_IMAGE_IGNORE_PORT"]:
            host = host.partition(":")[0]
        name = host.encode("latin-1").lower()
        found = self._find("XLB_KEY_HOST_EXACT", 0, name)
        if found is not None:
            return found
        for kind, text, lens in (
            ("XLB_KEY_HOST_SUFFIX", name[::-1], header.suffix_lens),
            ("XLB_KEY_HOST_PREFIX", name, header.prefix_lens),
        ):
            for length in self._lengths(lens):
                # A wildcard stands for at least one character.
                if length < len(text) and (found := self._find(kind, 0, text[:length])) is not None:
                    return found
        return int(header.default_vhost)

    def _candidates(self, vhost: Any, path: bytes) -> int:
        if vhost.has_exact and (found := self._find("XLB_KEY_PATH_EXACT", vhost.index, path)) is not None:
            return found
        for length in self._lengths(vhost.lens):
            if length <= len(path):
                found = self._find("XLB_KEY_PATH_PREFIX", vhost.index, path[:length])
                if found is not None:
                    return found
        return int(vhost.any_list)

    def _act(self, route: Any, random: int) -> Outcome:
        if route.reason:
            return Outcome(Reason(route.reason), route.index)
        number = route.cluster
        if route.clusters > 1:
            rest = random % route.weight_sum
            entries = [
                entry
                for i in range(-(-route.clusters // 8))
                for entry in self.cell("xlb_weighted", route.cluster + i).entry
            ][: route.clusters]
            assert entries[-1].cumulative == route.weight_sum
            number = next(entry.cluster for entry in entries if rest < entry.cumulative)
        cluster = self.cell("xlb_cluster", number)
        if cluster.reason:
            return Outcome(Reason(cluster.reason), route.index, cluster.index)
        pools = tuple(self._words(cluster.pools, cluster.endpoints))
        return Outcome(Reason.NONE, route.index, cluster.index, LbPolicy(cluster.lb), pools, cluster.rr)

    def _slots(self, request: Request) -> dict[int, bytes]:
        slots = {0: request.method.encode()}
        for name, value in request.lines():
            slot = self._find("XLB_KEY_HEADER_NAME", 0, name.encode("latin-1"))
            if slot is not None:
                slots.setdefault(slot, value.encode("latin-1"))
        assert all(slot <= self.header.header_names for slot in slots)
        return slots

    def _holds(self, number: int, slots: dict[int, bytes]) -> bool:
        predicate = self.cell("xlb_predicate", number)
        kinds = self._layouts.enum("xlb_predicate_kind")
        value = slots.get(predicate.slot)
        if predicate.kind == kinds["XLB_PRED_PRESENT"]:
            return (value is not None) != bool(predicate.invert)
        assert predicate.kind == kinds["XLB_PRED_EXACT"]
        return value == self._text(predicate)

    def _list(self, number: int) -> list[int]:
        if not number:
            return []
        count = self._words(number, 1)[0]
        assert 0 < count <= self._limits.candidates
        return self._words(number, count + 1)[1:]

    def _lengths(self, number: int) -> list[int]:
        if not number:
            return []
        lengths = self.cell("xlb_lengths", number)
        found = list(lengths.len[: lengths.n])
        assert len(found) <= self._limits.lengths
        assert found == sorted(set(found), reverse=True)
        return found

    def _words(self, number: int, count: int) -> list[int]:
        return list((ctypes.c_uint32 * count).from_buffer_copy(self._image, number * CELL))

    def _find(self, kind: str, scope: int, text: bytes) -> int | None:
        h = int(self.header.seed)
        for byte in text:
            h = ((h ^ byte) * 0x100000001B3) & MASK
        h = ((h ^ (scope << 8 | self._kinds[kind])) * 0x9E3779B97F4A7C15) & MASK
        for probe in range(self._limits.probes):
            slot = ((h >> 32) + probe) & self.header.table_mask
            key = self.cell("xlb_key", self.header.table + slot)
            if key.kind == self._kinds["XLB_KEY_FREE"]:
                return None
            if (key.hash, key.kind, key.scope) == (h, self._kinds[kind], scope) and self._text(key) == text:
                return int(key.value)
        return None

    def _text(self, cell: Any) -> bytes:
        inline = bytes(cell.text)
        start = cell.more * CELL
        rest = self._image[start : start + max(0, cell.len - len(inline))] if cell.more else b""
        return (inline + rest)[: cell.len]
