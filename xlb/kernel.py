"""The agent's writing to the kernel's maps: each function one change, made so that a request sees it whole or not.

Updates of nested maps wait for an RCU grace period (8-9 ms, however many there are in one batch), so everything here
is batched, and is called from a thread.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bpf.loader import DataPath
from bpf.maps import F_INNER_MAP, F_MMAPABLE, Map, MapKind, create_map
from translator.reasons import Reason
from xlb.captures import Capture, Destination, mapped
from xlb.numbering import Endpoint, Sizes

_CELL: Final = 64
_F_NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC
_MAPS: Final = (
    "xlb_workloads",
    "xlb_captures",
    "xlb_images",
    "xlb_pools",
    "xlb_endpoints",
    "xlb_round_robin",
    "xlb_config",
    "xlb_counters",
)
_Maker = Callable[[], Map]

RESPONSE_LIMIT: Final = 1 << 20
UPLOAD_LIMIT: Final = 400_000
CORK_LIMIT: Final = 32_768


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes: see struct xlb_config."""

    response: int = RESPONSE_LIMIT
    upload: int = UPLOAD_LIMIT
    cork: int = CORK_LIMIT


@dataclass(frozen=True, slots=True)
class Filled:
    """Inner maps that are to be put into an outer one, by their index there."""

    outer: str
    inner: Mapping[int, Map]


class Kernel:
    """The maps of one instance, as the agent writes them."""

    def __init__(self, data_path: DataPath, envoy_address: str) -> None:
        layouts = data_path.layouts
        self._constants = layouts.constants()
        self._kinds = layouts.enum("xlb_capture_kind")
        self._capture_key: Any = layouts.struct("xlb_capture_key")
        self._capture: Any = layouts.struct("xlb_capture")
        self._endpoint: Any = layouts.struct("xlb_endpoint")
        self._workload: Any = layouts.struct("xlb_workload")
        self._config: Any = layouts.struct("xlb_config")
        self._maps = {name: data_path.map(name) for name in _MAPS}
        self._envoy_address = mapped(envoy_address)

    @property
    def sizes(self) -> Sizes:
        constants = self._constants
        return Sizes(
            views=constants["XLB_MAX_VIEWS"],
            images=constants["XLB_MAX_IMAGES"],
            pools=constants["XLB_MAX_POOLS"] - constants["XLB_DESTINATIONS"],
            cursors=self._maps["xlb_round_robin"].max_entries,
        )

    def close(self) -> None:
        for opened in self._maps.values():
            opened.close()

    def configure(self, cgroup_level: int, limits: Limits, *, keeper_lives: bool) -> None:
        """Write xlb_config.  A keeper that lives has written its part, and nobody else's would be true."""
        raw = self._maps["xlb_config"].lookup(_u32(0)) if keeper_lives else None
        config = self._config.from_buffer_copy(raw) if raw is not None else self._config()
        config.layout = self._constants["XLB_LAYOUT_VERSION"]
        config.cgroup_level = cgroup_level
        config.response_limit = limits.response
        config.upload_limit = limits.upload
        config.cork_limit = limits.cork
        self._maps["xlb_config"].update(_u32(0), bytes(config))

    # -- workloads -----------------------------------------------------------------------------------------------

    def add_workload(self, cgroup: int, view: int, number: int) -> None:
        self._maps["xlb_workloads"].update(_u64(cgroup), bytes(self._workload(view=view, id=number)))

    def remove_workload(self, cgroup: int) -> None:
        self._maps["xlb_workloads"].delete(_u64(cgroup))

    def workloads(self) -> list[int]:
        """Cgroup ids of all that are registered."""
        keys = [*self._maps["xlb_workloads"].keys()]
        return [int.from_bytes(key, sys.byteorder) for key in keys]

    # -- pools ---------------------------------------------------------------------------------------------------

    def open_pools(self, pools: Mapping[Endpoint, int]) -> None:
        """Make empty pools, and tell the keeper (by xlb_endpoints) where their connections lead."""
        if not pools:
            return
        depth = self._constants["XLB_POOL_DEPTH"]
        self.put(self._fill("xlb_pools", {number: lambda: _stack(depth) for number in pools.values()}))
        endpoints = self._maps["xlb_endpoints"]
        values = []
        for (address, port), number in pools.items():
            old = self._endpoint.from_buffer_copy(endpoints.lookup(_u32(number)) or bytes(self._endpoint()))
            made = self._endpoint(port=port, generation=(old.generation + 1) & 0xFFFFFFFF)
            made.address.b[:] = mapped(address)
            values.append(bytes(made))
        endpoints.update_batch([_u32(number) for number in pools.values()], values)

    def close_pools(self, numbers: Iterable[int]) -> None:
        """Say of pools that they are not in use any more: the keeper closes their connections."""
        endpoints = self._maps["xlb_endpoints"]
        for number in numbers:
            old = self._endpoint.from_buffer_copy(endpoints.lookup(_u32(number)) or bytes(self._endpoint()))
            old.port = 0
            endpoints.update(_u32(number), bytes(old))

    # -- images and captures -------------------------------------------------------------------------------------

    def fill_images(self, images: Mapping[int, bytes]) -> Filled:
        """Inner maps with images, for `put`."""
        return self._fill("xlb_images", {slot: _image_maker(image) for slot, image in images.items()})

    def swap_images(self, images: Mapping[int, bytes]) -> None:
        """Put images into their slots, all at once."""
        self.put(self.fill_images(images))

    def swap_captures(self, views: Mapping[int, Mapping[Destination, Capture]]) -> None:
        """Put what views capture in force, all at once."""
        makers = {view: self._captures_maker(entries) for view, entries in views.items()}
        self.put(self._fill("xlb_captures", makers))

    def _captures_maker(self, entries: Mapping[Destination, Capture]) -> _Maker:
        def make() -> Map:
            made = create_map(
                MapKind.HASH,
                "xlb_captures_in",
                ctypes.sizeof(self._capture_key),
                ctypes.sizeof(self._capture),
                max(len(entries), 1),
                _F_NO_PREALLOC,
            )
            if entries:
                made.update_batch([self._key(d) for d in entries], [self._value(c) for c in entries.values()])
            return made

        return make

    def _key(self, destination: Destination) -> bytes:
        key = self._capture_key(port=destination.port)
        key.address.b[:] = destination.address
        return bytes(key)

    def _value(self, capture: Capture) -> bytes:
        value = self._capture(
            kind=self._kinds[capture.kind.value],
            image=capture.image,
            envoy_port=capture.envoy_port,
            reason=capture.reason,
        )
        value.envoy_address.b[:] = self._envoy_address
        return bytes(value)

    @staticmethod
    def _fill(outer: str, makers: Mapping[int, _Maker]) -> Filled:
        inner: dict[int, Map] = {}
        try:
            for index, make in makers.items():
                inner[index] = make()
        except BaseException:
            for made in inner.values():
                made.close()
            raise
        return Filled(outer, inner)

    def put(self, filled: Filled) -> None:
        """Put inner maps into their outer one in one batch, which then holds them.

        Programs that start see them at once; this returns when none that began before runs any more.
        """
        if not filled.inner:
            return
        try:
            inner = filled.inner.values()
            self._maps[filled.outer].update_batch([_u32(i) for i in filled.inner], [_u32(made.fd) for made in inner])
        finally:
            for made in filled.inner.values():
                made.close()

    def holds(self, filled: Filled) -> bool:
        """Whether all of them have been put in, though `put` may still wait for what began before."""
        outer = self._maps[filled.outer]
        return all(outer.lookup(_u32(index)) == _u32(made.id) for index, made in filled.inner.items())

    # -- counters ------------------------------------------------------------------------------------------------

    def counters(self, view: int) -> dict[str, int]:
        """Requests of a view by the name of the reason; those that are 0 are left out."""
        counted: dict[str, int] = {}
        base = view * self._constants["XLB_MAX_REASONS"]
        for reason in Reason:
            values = self._maps["xlb_counters"].lookup_percpu(_u32(base + reason))
            total = sum(int.from_bytes(value, sys.byteorder) for value in values)
            if total:
                counted[reason.name] = total
        return counted


def _image_maker(image: bytes) -> _Maker:
    def make() -> Map:
        made = create_map(
            MapKind.ARRAY, "xlb_image_in", 4, _CELL, max(len(image) // _CELL, 1), F_INNER_MAP | F_MMAPABLE
        )
        try:
            with made.mmap(writable=True) as cells:
                cells[: len(image)] = image
        except BaseException:
            made.close()
            raise
        return made

    return make


def _stack(depth: int) -> Map:
    return create_map(MapKind.STACK, "xlb_pool_in", 0, 8, depth)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _u64(number: int) -> bytes:
    return number.to_bytes(8, sys.byteorder)
