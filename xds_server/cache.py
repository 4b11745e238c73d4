"""The typed resources of one view, as received, and consistent snapshots of them.  No I/O, no clock.

Life of an update: `ResourceCache.update` takes a response (bad resources are rejected one by one and their last good
version stays); `names` tells what to ask for next; `snapshot` gives a consistent set, or None while something that
is referenced has not arrived.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.message import Message

from translator.model import Rejected
from xds_server.resources import TypeUrl, digest, references, type_of, wire_name
from xds_server.validation import MAX_RESOURCE_BYTES, InvalidResourceError, Validator

_REFERRERS: Final = ((TypeUrl.CLUSTER, TypeUrl.ENDPOINT), (TypeUrl.LISTENER, TypeUrl.ROUTE))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources of one view by name, checked and consistent.  The messages are shared: do not change them.

    `version` differs whenever the content does.  `endpoints` is keyed by ClusterLoadAssignment name, which is the
    cluster's `eds_cluster_config.service_name` or else its name.
    """

    version: str
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    endpoints: Mapping[str, ClusterLoadAssignment] = field(default_factory=dict)
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=dict)

    def by_type(self, type_url: TypeUrl) -> Mapping[str, Message]:
        return {
            TypeUrl.CLUSTER: self.clusters,
            TypeUrl.ENDPOINT: self.endpoints,
            TypeUrl.LISTENER: self.listeners,
            TypeUrl.ROUTE: self.routes,
        }[type_url]


@dataclass(frozen=True, slots=True)
class Missing:
    """A resource that another one refers to and that never arrived."""

    type_url: TypeUrl
    name: str
    wanted_by: str

    def __str__(self) -> str:
        return f"{self.type_url.label} {self.name} (wanted by {self.wanted_by})"


def inconsistencies(snapshot: Snapshot) -> Iterator[Missing]:
    """What a set of resources refers to without holding it; a consistent set yields nothing."""
    for referrer, target in _REFERRERS:
        present = snapshot.by_type(target)
        for name, message in snapshot.by_type(referrer).items():
            for wanted in references(referrer, message):
                if wanted not in present:
                    yield Missing(target, wanted, name)


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one response did to the cache.  `changed` includes new resources; `rejected` is of this response only."""

    type_url: TypeUrl
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True)
class _Entry:
    message: Message
    digest: bytes
    references: tuple[str, ...]


class ResourceCache:
    """The resources of one view.

    Clusters that a response no longer lists stay in snapshots until `settle` is called: routes that still name them
    are usually on their way (istiod pushes CDS first), and traffic must not fail in between.
    """

    def __init__(self, max_resource_bytes: int = MAX_RESOURCE_BYTES) -> None:
        self._validator = Validator(max_resource_bytes)
        self._entries: dict[TypeUrl, dict[str, _Entry]] = {t: {} for t in TypeUrl}
        self._rejected: dict[TypeUrl, dict[str, Rejected]] = {t: {} for t in TypeUrl}
        self._leaving: dict[str, _Entry] = {}
        self._arrived: set[TypeUrl] = set()
        self._serial = 0
        self._version_info = ""

    def update(self, response: DiscoveryResponse) -> UpdateResult:
        """Take in one state-of-the-world response.

        CDS and LDS replace everything; EDS and RDS only add and change, whatever they leave out.

        :raises ValueError: for a response of a type other than the four
        """
        type_url = type_of(response.type_url)
        if type_url is None:
            raise ValueError(f"cannot take a response of type {response.type_url!r}")
        entries = self._entries[type_url]
        changed: dict[str, _Entry] = {}
        rejected: dict[str, Rejected] = {}
        listed: set[str] = set()
        nameless = False
        for index, resource in enumerate(response.resources):
            name = wire_name(resource.value)
            try:
                if resource.type_url != type_url:
                    raise InvalidResourceError("", f"is a {resource.type_url!r} in a response of type {type_url!r}")
                if name and name in listed:
                    raise InvalidResourceError("", "is in the response twice")
                old = entries.get(name) if name else None
                new_digest = digest(resource.value)
                if old is not None and old.digest == new_digest and name:
                    listed.add(name)
                    continue
                parsed = self._validator.parse(type_url, resource.value)
            except InvalidResourceError as error:
                nameless = nameless or not name
                label = name or f"(resource {index}, without a name)"
                rejected[label] = Rejected(type_url, label, error.field, error.why)
                listed.add(label)
                continue
            listed.add(parsed.name)
            changed[parsed.name] = _Entry(parsed.message, new_digest, parsed.references)
        removed: frozenset[str] = frozenset()
        # A resource whose very name is unreadable may be any of those that seem to be gone: then nothing goes.
        if type_url.state_of_the_world and not nameless:
            removed = frozenset(entries.keys() - listed)
        self._take(type_url, changed, removed, rejected, listed)
        if changed or removed or type_url not in self._arrived:
            self._bump(response.version_info)
        self._arrived.add(type_url)
        if type_url.state_of_the_world:
            self._forget_unreferenced()
        return UpdateResult(type_url, frozenset(changed), removed, tuple(rejected.values()))

    def names(self, type_url: TypeUrl) -> frozenset[str]:
        """For EDS and RDS: the names to ask for.  For CDS and LDS: the names held."""
        for referrer, target in _REFERRERS:
            if target is type_url:
                return frozenset(name for entry in self._current(referrer).values() for name in entry.references)
        return frozenset(self._entries[type_url])

    def held(self, type_url: TypeUrl) -> Mapping[str, Message]:
        """What has arrived of a type, referenced or not, consistent or not."""
        return {name: entry.message for name, entry in self._current(type_url).items()}

    def missing(self) -> list[Missing]:
        """What keeps `snapshot` from being consistent.  A resource that was rejected counts as arrived."""
        return [
            Missing(target, wanted, name)
            for referrer, target in _REFERRERS
            for name, entry in self._current(referrer).items()
            for wanted in entry.references
            if wanted not in self._entries[target] and wanted not in self._rejected[target]
        ]

    @property
    def complete(self) -> bool:
        """Whether both the clusters and the listeners have arrived at least once."""
        return {TypeUrl.CLUSTER, TypeUrl.LISTENER} <= self._arrived

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Every rejection that stands: until the resource arrives in good form, or is no longer listed or wanted."""
        return tuple(r for by_name in self._rejected.values() for r in by_name.values())

    def snapshot(self) -> Snapshot | None:
        """The resources, if consistent; None while something referenced has not arrived."""
        if not self.complete or self.missing():
            return None
        wanted = {target: self.names(target) for _, target in _REFERRERS}

        def messages(type_url: TypeUrl) -> Mapping[str, Message]:
            only = wanted.get(type_url)
            held = self._current(type_url)
            return MappingProxyType({n: e.message for n, e in held.items() if only is None or n in only})

        return Snapshot(
            version=f"{self._version_info}#{self._serial}",
            clusters=messages(TypeUrl.CLUSTER),
            endpoints=messages(TypeUrl.ENDPOINT),
            listeners=messages(TypeUrl.LISTENER),
            routes=messages(TypeUrl.ROUTE),
        )

    @property
    def leaving(self) -> frozenset[str]:
        """Clusters that are gone at the source and still in snapshots."""
        return frozenset(self._leaving)

    def settle(self) -> frozenset[str]:
        """Let the clusters that are gone at the source go; returns their names."""
        gone = frozenset(self._leaving)
        if gone:
            self._leaving.clear()
            self._bump(self._version_info)
            self._forget_unreferenced()
        return gone

    def _current(self, type_url: TypeUrl) -> Mapping[str, _Entry]:
        held = self._entries[type_url]
        return {**self._leaving, **held} if type_url is TypeUrl.CLUSTER and self._leaving else held

    def _take(
        self,
        type_url: TypeUrl,
        changed: Mapping[str, _Entry],
        removed: frozenset[str],
        rejected: Mapping[str, Rejected],
        listed: set[str],
    ) -> None:
        entries = self._entries[type_url]
        for name in removed:
            gone = entries.pop(name)
            # One whose endpoints never came was never in force, and nobody will send them any more.
            if type_url is TypeUrl.CLUSTER and self._entries[TypeUrl.ENDPOINT].keys() >= set(gone.references):
                self._leaving[name] = gone
        entries.update(changed)
        standing = self._rejected[type_url]
        if type_url.state_of_the_world:
            standing.clear()
        for name in listed:
            standing.pop(name, None)
        standing.update(rejected)
        if type_url is TypeUrl.CLUSTER:
            for name in listed & self._leaving.keys():
                back = self._leaving.pop(name)
                if name not in entries:  # back, but malformed: its last good version stays
                    entries[name] = back

    def _forget_unreferenced(self) -> None:
        for _, target in _REFERRERS:
            wanted = self.names(target)
            for kept in (self._entries[target], self._rejected[target]):
                for name in kept.keys() - wanted:
                    del kept[name]

    def _bump(self, version_info: str) -> None:
        self._serial += 1
        self._version_info = version_info
