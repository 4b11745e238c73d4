"""Rule model -> kernel image: one route configuration of one view as an array of 64-byte cells.

What the cells mean is written in `bpf/include/xlb_types.h` alone; their layout comes from the BTF of the compiled
object (`bpf.layout`).  Everything a request needs is in this one array, so that the swap of one slot in a nested map
changes all of it at once.
"""

from __future__ import annotations

import ctypes
import secrets
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from translator.hash_table import Key, KeyTable, lay_out
from translator.kernel_view import METHOD, DomainKind, KernelHost, KernelRoute, KernelView, domain_kind, kernel_view
from translator.limits import Limits
from translator.model import ClusterRule, EndpointRule, HeaderMatch, RouteConfigRule, StringKind
from translator.path_lists import PathLists, path_lists
from translator.reasons import Reason

MAGIC: Final = 0x42584C31  # XLB_IMAGE_MAGIC: macros are not in BTF
CELL: Final = 64
NO_ROUTE_INDEX: Final = 0xFFFFFFFF  # of the synthetic route that stands for a budget
_DEFAULT_LIMITS: Final = Limits()


class Ids(Protocol):
    """Numbers that outlive an image."""

    def pool(self, endpoint: EndpointRule) -> int:
        """The pool of connections to an endpoint."""

    def round_robin(self, cluster: str) -> int:
        """The index of a cluster's cursor in xlb_round_robin."""


class Layouts(Protocol):
    """What is needed of `bpf.layout.Layouts`."""

    def struct(self, name: str) -> type[ctypes.Structure]:
        """The C struct of a name."""

    def enum(self, name: str) -> Mapping[str, int]:
        """The constants of a C enum."""


def cluster_names(config: RouteConfigRule) -> tuple[str, ...]:
    """All clusters a route configuration names, sorted: position N is what the kernel reports as cluster N."""
    return tuple(
        sorted({c.cluster for host in config.virtual_hosts for route in host.routes for c in route.action.clusters})
    )


def build(
    config: RouteConfigRule,
    clusters: Mapping[str, ClusterRule],
    ids: Ids,
    generation: int,
    *,
    layouts: Layouts,
    seed: int | None = None,
    limits: Limits = _DEFAULT_LIMITS,
) -> bytes:
    """The image of a route configuration; its length is a multiple of 64.

    :param clusters: by name; one that a route names and that is not there is CLUSTER_MISSING
    :param generation: written into the header as it is
    :param seed: of the hash table, 64 bits; None: a random one, so that nobody can choose paths that collide
    """
    view = kernel_view(config, limits)
    chosen = secrets.randbits(64) if seed is None else seed
    if view.reason:
        return _Builder(layouts, limits).closed(view.reason, generation)
    builder = _Builder(layouts, limits)
    builder.add_clusters(cluster_names(config), clusters, ids)
    image = builder.finish(config, view, generation, chosen)
    if len(image) > limits.image_cells * CELL:
        return _Builder(layouts, limits).closed(Reason.BUDGET_IMAGE, generation)
    return image


class _Builder:
    """Appends cells; cell 0 is the header, filled in last."""

    def __init__(self, layouts: Layouts, limits: Limits) -> None:
        self._limits = limits
        self._cells: list[bytes] = [bytes(CELL)]
        self._header: Any = layouts.struct("xlb_image_header")
        self._lengths: Any = layouts.struct("xlb_lengths")
        self._key: Any = layouts.struct("xlb_key")
        self._vhost: Any = layouts.struct("xlb_vhost")
        self._route: Any = layouts.struct("xlb_route")
        self._weighted: Any = layouts.struct("xlb_weighted")
        self._predicate: Any = layouts.struct("xlb_predicate")
        self._cluster: Any = layouts.struct("xlb_cluster")
        for kind in (self._header, self._lengths, self._key, self._vhost, self._route, self._weighted):
            _check_size(kind)
        for kind in (self._predicate, self._cluster):
            _check_size(kind)
        self._key_kinds = layouts.enum("xlb_key_kind")
        self._predicate_kinds = layouts.enum("xlb_predicate_kind")
        self._undecided = layouts.enum("xlb_route_flags")["XLB_ROUTE_UNDECIDED"]
        self._flags = layouts.enum("xlb_image_flags")
        self._text_size: int = self._key.text.size
        self._value_size: int = self._predicate.text.size
        self._keys: list[Key] = []
        self._cluster_cells: dict[str, int] = {}
        self._cluster_reasons: dict[str, Reason] = {}
        self._predicate_cells: dict[tuple[HeaderMatch, ...], int] = {}
        self._list_cells: dict[tuple[int, ...], int] = {}
        self._lengths_cells: dict[tuple[int, ...], int] = {}
        self._overflow_cell = 0

    def closed(self, reason: Reason, generation: int) -> bytes:
        """An image of one cell that sends everything to Envoy."""
        return bytes(self._header(magic=MAGIC, cells=1, generation=generation, reason=reason))

    def finish(self, config: RouteConfigRule, view: KernelView, generation: int, seed: int) -> bytes:
        slots = {METHOD: 0, **{name: slot for slot, name in enumerate(view.names, 1)}}
        for name, slot in slots.items():
            if slot:
                self._keys.append(self._named("XLB_KEY_HEADER_NAME", 0, name.encode(), slot))
        domains = _Domains()
        for index, host in enumerate(view.hosts):
            cell = self._add_host(index, host, slots)
            for domain in host.rule.domains:
                domains.add(domain, cell)
        for kind, name in (
            (DomainKind.EXACT, "XLB_KEY_HOST_EXACT"),
            (DomainKind.SUFFIX, "XLB_KEY_HOST_SUFFIX"),
            (DomainKind.PREFIX, "XLB_KEY_HOST_PREFIX"),
        ):
            for text, cell in domains.by_kind[kind].items():
                self._keys.append(self._named(name, 0, text, cell))
        suffix_lens = self._add_lengths(len(text) for text in domains.by_kind[DomainKind.SUFFIX])
        prefix_lens = self._add_lengths(len(text) for text in domains.by_kind[DomainKind.PREFIX])
        flags = self._flags["XLB_IMAGE_IGNORE_PORT"] if config.ignore_port_in_host else 0
        if domains.default and not any(domains.by_kind[kind] for kind in DomainKind):
            flags |= self._flags["XLB_IMAGE_ANY_HOST"]
        # Text that a key cell cannot hold comes before the table, so the table is last.
        more = [self._add_text(key.text[self._text_size :]) for key in self._keys]
        table = lay_out(self._keys, seed, self._limits.probes)
        first = self._add_table(table, more)
        self._cells[0] = bytes(
            self._header(
                magic=MAGIC,
                cells=len(self._cells),
                generation=generation,
                seed=table.seed,
                table=first,
                table_mask=len(table.slots) - 1,
                default_vhost=domains.default,
                suffix_lens=suffix_lens,
                prefix_lens=prefix_lens,
                flags=flags,
                header_names=len(view.names),
            )
        )
        return b"".join(self._cells)

    def add_clusters(self, names: Sequence[str], clusters: Mapping[str, ClusterRule], ids: Ids) -> None:
        for index, name in enumerate(names):
            rule = clusters.get(name)
            reason = Reason.CLUSTER_MISSING if rule is None else rule.reason
            if rule is None or reason:
                cell = self._cluster(index=index, reason=reason)
            else:
                pools = self._add_words([ids.pool(endpoint) for endpoint in rule.endpoints])
                cell = self._cluster(
                    index=index,
                    lb=rule.lb,
                    endpoints=len(rule.endpoints),
                    pools=pools,
                    rr=ids.round_robin(name),
                )
            self._cluster_cells[name] = self._add(bytes(cell))

    def _named(self, kind: str, scope: int, text: bytes, value: int) -> Key:
        return Key(self._key_kinds[kind], scope, text, value)

    def _add_host(self, index: int, host: KernelHost, slots: Mapping[str, int]) -> int:
        if host.rule.reason:
            return self._add(bytes(self._vhost(index=index, reason=host.rule.reason)))
        lists = path_lists(host.routes, self._limits)
        routes: dict[int, int] = {}
        any_list = self._add_list(host, lists, lists.any, routes, slots)
        for kind, by_text in (("XLB_KEY_PATH_EXACT", lists.exact), ("XLB_KEY_PATH_PREFIX", lists.prefix)):
            for text, positions in by_text.items():
                cell = self._add_list(host, lists, positions, routes, slots)
                self._keys.append(self._named(kind, index, text, cell))
        lens = self._add_lengths(len(text) for text in lists.prefix)
        return self._add(
            bytes(self._vhost(index=index, any_list=any_list, has_exact=int(bool(lists.exact)), lens=lens))
        )

    def _add_list(
        self,
        host: KernelHost,
        lists: PathLists,
        positions: Sequence[int],
        routes: dict[int, int],
        slots: Mapping[str, int],
    ) -> int:
        """The cell of a candidate list; 0 for an empty one.  `routes`: cells of the host's routes so far."""
        if not positions:
            return 0
        positions, overflow = lists.reachable(positions)
        cells = []
        for position in positions:
            if position not in routes:
                routes[position] = self._add_route(host.routes[position], slots)
            cells.append(routes[position])
        if overflow:
            cells.append(self._overflow())
        key = tuple(cells)
        if key not in self._list_cells:
            self._list_cells[key] = self._add_words([len(cells), *cells])
        return self._list_cells[key]

    def _overflow(self) -> int:
        if not self._overflow_cell:
            self._overflow_cell = self._add(
                bytes(self._route(index=NO_ROUTE_INDEX, reason=Reason.BUDGET_CANDIDATES, flags=self._undecided))
            )
        return self._overflow_cell

    def _add_route(self, route: KernelRoute, slots: Mapping[str, int]) -> int:
        cell = self._route(index=route.rule.index)
        if route.undecided:
            cell.reason, cell.flags = route.undecided, self._undecided
            return self._add(bytes(cell))
        cell.predicates = len(route.predicates)
        cell.predicate = self._add_predicates(route.predicates, slots)
        cell.reason = route.action_reason
        if not route.action_reason:
            chosen = [c for c in route.rule.action.clusters if c.weight]
            cell.clusters = len(chosen)
            cell.weight_sum = sum(c.weight for c in chosen)
            if len(chosen) == 1:
                cell.cluster = self._cluster_cells[chosen[0].cluster]
            else:
                cell.cluster = self._add_weighted([(c.weight, self._cluster_cells[c.cluster]) for c in chosen])
        return self._add(bytes(cell))

    def _add_weighted(self, items: Sequence[tuple[int, int]]) -> int:
        blob = b""
        total = 0
        per_cell = len(self._weighted().entry)
        for start in range(0, len(items), per_cell):
            cell = self._weighted()
            for entry, (weight, cluster) in zip(cell.entry, items[start : start + per_cell], strict=False):
                total += weight
                entry.cumulative, entry.cluster = total, cluster
            blob += bytes(cell)
        return self._add(blob)

    def _add_predicates(self, predicates: tuple[HeaderMatch, ...], slots: Mapping[str, int]) -> int:
        if not predicates:
            return 0
        if predicates not in self._predicate_cells:
            blob = b""
            for predicate in predicates:
                present = predicate.kind is StringKind.PRESENT
                text = b"" if present else predicate.value.encode()
                kind = self._predicate_kinds["XLB_PRED_PRESENT" if present else "XLB_PRED_EXACT"]
                cell = self._predicate(kind=kind, invert=int(predicate.invert), slot=slots[predicate.name])
                cell.len = len(text)
                cell.more = self._add_text(text[self._value_size :])
                _fill(cell.text, text[: self._value_size])
                blob += bytes(cell)
            self._predicate_cells[predicates] = self._add(blob)
        return self._predicate_cells[predicates]

    def _add_lengths(self, lengths: Iterable[int]) -> int:
        """The cell of distinct lengths, the longest first; 0 for none."""
        distinct = tuple(sorted(set(lengths), reverse=True))
        if not distinct:
            return 0
        if distinct not in self._lengths_cells:
            cell = self._lengths(n=len(distinct))
            for i, length in enumerate(distinct):
                cell.len[i] = length
            self._lengths_cells[distinct] = self._add(bytes(cell))
        return self._lengths_cells[distinct]

    def _add_table(self, table: KeyTable, more: Sequence[int]) -> int:
        first = len(self._cells)
        free = bytes(CELL)
        for slot in table.slots:
            if slot is None:
                self._cells.append(free)
                continue
            key = self._keys[slot]
            cell = self._key(
                hash=table.hashes[slot],
                scope=key.scope,
                value=key.value,
                more=more[slot],
                len=len(key.text),
                kind=key.kind,
            )
            _fill(cell.text, key.text[: self._text_size])
            self._cells.append(bytes(cell))
        return first

    def _add_text(self, text: bytes) -> int:
        return self._add(text) if text else 0

    def _add_words(self, words: Sequence[int]) -> int:
        return self._add(array("I", words).tobytes())

    def _add(self, blob: bytes) -> int:
        """Append consecutive cells, padded with zeros; the number of the first."""
        first = len(self._cells)
        for start in range(0, len(blob), CELL):
            self._cells.append(blob[start : start + CELL].ljust(CELL, b"\0"))
        return first


class _Domains:
    """Domains by kind -> cell of the virtual host; the first of duplicates wins (Envoy refuses them)."""

    def __init__(self) -> None:
        self.by_kind: dict[DomainKind, dict[bytes, int]] = {kind: {} for kind in DomainKind}
        self.default = 0

    def add(self, domain: str, cell: int) -> None:
        kind, text = domain_kind(domain)
        if kind is DomainKind.ANY:
            self.default = self.default or cell
            return
        raw = text.encode()
        self.by_kind[kind].setdefault(raw[::-1] if kind is DomainKind.SUFFIX else raw, cell)


def _fill(target: Any, text: bytes) -> None:
    ctypes.memmove(target, text, len(text))


def _check_size(kind: type[ctypes.Structure]) -> None:
    if ctypes.sizeof(kind) != CELL:
        raise ValueError(f"struct {kind.__name__} has {ctypes.sizeof(kind)} bytes, an image cell has {CELL}")
