"""The server's side of one ADS stream, state of the world, without any I/O: requests in, responses out.

One rule makes all of it: compare what the client should have with what was last sent, send the difference, in the
order CDS, EDS, LDS, RDS.  CDS and LDS responses hold the whole set, EDS and RDS responses only what was asked for
and is new or changed.  Used by the ADS server for the node Envoy and by `xlb replay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

from xds_server.resources import MESSAGES, TypeUrl, digest, label_of, referenced_type, references, type_of

_BACK: Final = (TypeUrl.CLUSTER, TypeUrl.ENDPOINT)
_ROOTS: Final = (TypeUrl.CLUSTER, TypeUrl.LISTENER)


@dataclass(frozen=True, slots=True)
class Packed:
    """A resource as it goes over the wire, and the names it makes its reader ask for."""

    any: PackedAny
    digest: bytes
    references: tuple[str, ...] = ()

    @classmethod
    def of(cls, type_url: str, value: bytes, message: Message | None = None) -> Packed:
        """Pack serialised content; `message` is the same parsed, if at hand.

        :raises ValueError: if it cannot be parsed
        """
        known = type_of(type_url)
        names: tuple[str, ...] = ()
        if known is not None and referenced_type(known) is not None:
            names = references(known, MESSAGES[known].FromString(value) if message is None else message)
        return cls(PackedAny(type_url=type_url, value=value), digest(value), names)


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """Everything one client is to have.

    `by_type` is keyed by type URL, then by name.  `serial` orders the sets of one server.  With `fill_missing`, a
    named EDS or RDS resource that does not exist is answered with an empty one, as istiod does.
    """

    version: str
    serial: int
    by_type: Mapping[str, Mapping[str, Packed]] = field(default_factory=dict)
    identifier: str = ""
    fill_missing: bool = False

    def serves(self, type_url: str) -> bool:
        return type_url in self.by_type or type_of(type_url) is not None

    def all(self, type_url: str) -> Mapping[str, Packed]:
        return self.by_type.get(type_url, {})

    def get(self, type_url: str, name: str) -> Packed | None:
        found = self.all(type_url).get(name)
        known = type_of(type_url)
        if found is not None or known is None or known.state_of_the_world or not self.fill_missing:
            return found
        key = "cluster_name" if known is TypeUrl.ENDPOINT else "name"
        return Packed.of(type_url, MESSAGES[known](**{key: name}).SerializeToString())

    def expected(self, type_url: TypeUrl) -> frozenset[str]:
        """The names of this type that a client with all of this set will have asked for."""
        held = self.all(type_url)
        source = {TypeUrl.ENDPOINT: TypeUrl.CLUSTER, TypeUrl.ROUTE: TypeUrl.LISTENER}[type_url]
        return frozenset(n for packed in self.all(source).values() for n in packed.references if n in held)


@dataclass(frozen=True, slots=True)
class Nack:
    """The client refused a response; `message` is its own words."""

    type_url: str
    message: str


@dataclass(frozen=True, slots=True)
class _Sent:
    digest: bytes
    nonce: str
    refused: bool = False
    taken: bool = False  # this content was ACKed, in this or an earlier response


@dataclass(slots=True)
class _Watch:
    names: frozenset[str] | None  # None: wildcard
    sent: dict[str, _Sent] = field(default_factory=dict)
    due: bool = True  # a wildcard response is owed even if nothing differs
    nonce: str = ""
    version: str = ""
    outstanding: list[str] = field(default_factory=list)  # nonces without an answer, oldest first
    nack: Nack | None = None


class ServerStream:
    """One client's stream.

    With `ordered`, an update goes out in three steps, each after the client's ACK of the one before, so that traffic
    never meets a cluster that is not there yet or not there any more: the new clusters beside the old ones and their
    endpoints; then listeners and routes; then the clusters without those that are gone.  Without it, all types go
    out at once, as istiod does it.
    """

    def __init__(self, resources: ResourceSet, *, ordered: bool, nonce_prefix: str = "") -> None:
        self._target = resources  # what the client is to have
        self._front = None if ordered else resources  # what it may have of listeners and routes by now
        self._ordered = ordered
        self._prefix = nonce_prefix
        self._nonces = 0
        self._watches: dict[str, _Watch] = {}
        self._leaving: dict[str, Packed] = {}
        self._leaving_endpoints: dict[str, Packed] = {}
        self._acked_serial = -1

    @property
    def target(self) -> ResourceSet:
        return self._target

    @property
    def types(self) -> tuple[str, ...]:
        """Type URLs this client has asked for."""
        return tuple(self._watches)

    @property
    def nack(self) -> Nack | None:
        """The first type whose newest content the client refused, in push order."""
        return next((w.nack for t in self._order() if (w := self._watches[t]).nack is not None), None)

    @property
    def in_force(self) -> bool:
        """Whether the client has ACKed all of the target: it asked for clusters, listeners and all they refer to.

        Clusters on their way out do not count: nothing uses them.
        """
        return self._acked_serial == self._target.serial and self.nack is None

    def request(self, request: DiscoveryRequest) -> list[DiscoveryResponse]:
        """Take a request: a subscription, an ACK, a NACK, or a change of names.

        A request with an old nonce only settles what it answers: its names are ignored, since the client will repeat
        them when it answers the newest response.
        """
        type_url = request.type_url
        if not self._target.serves(type_url):
            return []
        watch = self._watches.get(type_url)
        if watch is None or not request.response_nonce:
            # New on this stream.  A nonce from another stream (the client took it along) makes no difference.
            watch = self._watches[type_url] = _Watch(names=None)
            self._set_names(watch, request)
        else:
            self._settle(watch, request)
            # With nothing sent since the type was asked for anew, an old nonce can only be from before that.
            if request.response_nonce == watch.nonce or not watch.nonce:
                self._set_names(watch, request)
        return self._advance()

    def publish(self, resources: ResourceSet) -> list[DiscoveryResponse]:
        """Bring the client to a new set.  What it refused before is sent again, changed or not."""
        if self._ordered:
            watch = self._watches.get(TypeUrl.CLUSTER)
            sent = {} if watch is None else watch.sent
            stays = resources.all(TypeUrl.CLUSTER).keys()
            # Routes that the client may have use clusters of these sets only.  What it refused must not come again,
            # or it would refuse the new set for it.
            front = self._front or self._target
            used = {**self._leaving, **front.all(TypeUrl.CLUSTER)}
            self._leaving = used
            self._leaving_endpoints = {**self._leaving_endpoints, **front.all(TypeUrl.ENDPOINT)}
            self._leave_only(n for n in used if n not in stays and n in sent and not sent[n].refused)
        self._target = resources
        for watch in self._watches.values():
            if watch.nack is not None:
                watch.nack = None
                watch.due = True
        return self._advance()

    def _leave_only(self, names: Iterable[str]) -> None:
        """Of the clusters on their way out, keep these, and the endpoints they refer to."""
        self._leaving = {name: self._leaving[name] for name in list(names)}
        needed = {name for packed in self._leaving.values() for name in packed.references}
        self._leaving_endpoints = {n: p for n, p in self._leaving_endpoints.items() if n in needed}

    def _set_names(self, watch: _Watch, request: DiscoveryRequest) -> None:
        names = frozenset(request.resource_names)
        known = type_of(request.type_url)
        if not names and (known is None or known.state_of_the_world):
            watch.names = None
            return
        # "*" beside names is the newer way of asking for everything (xDS protocol, "wildcard").
        watch.names = None if "*" in names and known is not None and known.state_of_the_world else names
        for name in watch.sent.keys() - names:
            if watch.names is not None:
                del watch.sent[name]

    def _settle(self, watch: _Watch, request: DiscoveryRequest) -> None:
        nonce = request.response_nonce
        if nonce not in watch.outstanding and nonce != watch.nonce:
            return
        if request.HasField("error_detail"):
            # Nobody knows how much of it the client kept: with the next set it gets these again.
            refused = self._mark(watch, nonce, refused=True)
            if refused or nonce == watch.nonce:
                watch.nack = Nack(request.type_url, request.error_detail.message)
            if request.type_url == TypeUrl.CLUSTER:
                # Those it took before cannot be what it refuses.
                self._leave_only(n for n in self._leaving if n in watch.sent and watch.sent[n].taken)
        elif nonce == watch.nonce:
            if request.version_info != watch.version:
                return  # only the names change: the response is still being worked on (xds_server.subscription)
            # A client may ACK what it NACKed before: it tried again, and now it is in force.
            self._mark(watch, nonce, refused=False)
            if not any(sent.refused for sent in watch.sent.values()):
                watch.nack = None
        # An answer also settles the responses before it, which some clients leave unanswered.
        if nonce in watch.outstanding:
            del watch.outstanding[: watch.outstanding.index(nonce) + 1]

    @staticmethod
    def _mark(watch: _Watch, nonce: str, *, refused: bool) -> bool:
        names = [name for name, sent in watch.sent.items() if sent.nonce == nonce]
        for name in names:
            sent = watch.sent[name]
            watch.sent[name] = _Sent(sent.digest, nonce, refused, sent.taken or not refused)
        return bool(names)

    def _advance(self) -> list[DiscoveryResponse]:
        out: list[DiscoveryResponse] = []
        if not self._watches:
            return out
        for type_url in _BACK:
            self._push(type_url, self._target, out)
        if not self._ordered or self._has_all(_BACK) or (self._front is None and self._may_begin()):
            self._front = self._target
        for other in self._order():
            if other not in _BACK and self._front is not None:
                self._push(other, self._front, out)
        is_new = self._front is self._target and all(t in self._watches for t in _ROOTS)
        if is_new and not out and self._has_all({*TypeUrl, *self._watches}):
            self._acked_serial = self._target.serial
            if self._leaving:
                self._leave_only(())
                self._push(TypeUrl.CLUSTER, self._target, out)
        return out

    def _may_begin(self) -> bool:
        """Whether a new stream may have its first listeners and routes.

        A client that connects again still has traffic.  Its clusters and endpoints must have gone out before; its
        ACKs are not waited for, since it may put all types in force together.  What it refuses of the clusters does
        not hold up the rest: it has nothing older to keep to.
        """
        clusters, endpoints = (self._watches.get(t) for t in _BACK)
        if clusters is None or clusters.nack is not None or (endpoints is not None and endpoints.nack is not None):
            return True
        return self._target.expected(TypeUrl.ENDPOINT) <= (set() if endpoints is None else endpoints.sent.keys())

    def _has_all(self, types: Iterable[str]) -> bool:
        for type_url in types:
            watch = self._watches.get(type_url)
            if watch is not None and (watch.outstanding or watch.nack is not None):
                return False
            if type_url not in (TypeUrl.ENDPOINT, TypeUrl.ROUTE):
                continue
            referrer = TypeUrl.CLUSTER if type_url == TypeUrl.ENDPOINT else TypeUrl.LISTENER
            if referrer in self._watches and not self._target.expected(TypeUrl(type_url)) <= self._asked(watch):
                return False
        return True

    @staticmethod
    def _asked(watch: _Watch | None) -> frozenset[str]:
        return frozenset() if watch is None or watch.names is None else watch.names

    def _order(self) -> list[str]:
        known: list[str] = [t for t in TypeUrl if t in self._watches]
        return known + sorted(t for t in self._watches if type_of(t) is None)

    def _push(self, type_url: str, resources: ResourceSet, out: list[DiscoveryResponse]) -> None:
        watch = self._watches.get(type_url)
        if watch is None:
            return
        if watch.names is None:
            wanted = dict(resources.all(type_url))
            if type_url == TypeUrl.CLUSTER:
                wanted = {**self._leaving, **wanted}
        else:
            old = self._leaving_endpoints if type_url == TypeUrl.ENDPOINT else {}
            found = ((name, resources.get(type_url, name) or old.get(name)) for name in sorted(watch.names))
            wanted = {name: packed for name, packed in found if packed is not None}
        again = watch.due
        changed = {
            name: packed
            for name, packed in wanted.items()
            if (sent := watch.sent.get(name)) is None or sent.digest != packed.digest or (again and sent.refused)
        }
        known = type_of(type_url)
        whole = watch.names is None or (known is not None and known.state_of_the_world)
        gone = watch.sent.keys() - wanted.keys() if whole else frozenset[str]()
        if not changed and not gone and not (watch.due and watch.names is None):
            watch.due = False
            return
        watch.due = False
        self._nonces += 1
        watch.nonce = f"{self._prefix}{self._nonces}"
        watch.version = resources.version
        content = wanted if whole else changed
        for name in gone:
            del watch.sent[name]
        for name, packed in content.items():
            before = watch.sent.get(name)
            taken = before is not None and before.taken and before.digest == packed.digest
            watch.sent[name] = _Sent(packed.digest, watch.nonce, taken=taken)
        watch.outstanding.append(watch.nonce)
        response = DiscoveryResponse(
            version_info=resources.version,
            type_url=type_url,
            nonce=watch.nonce,
            resources=[packed.any for packed in content.values()],
        )
        response.control_plane.identifier = resources.identifier
        out.append(response)
        self._force_referenced(type_url, changed)

    def _force_referenced(self, type_url: str, changed: Mapping[str, Packed]) -> None:
        """A changed cluster or listener warms anew and waits for its EDS or RDS: send it again though unchanged.

        istiod does so for EDS (`pilot/pkg/xds/ads.go`: forced EDS after CDS); Envoy's repeated request cannot be told
        from an ACK.
        """
        known = type_of(type_url)
        target = None if known is None else referenced_type(known)
        watch = None if target is None else self._watches.get(target)
        if watch is None:
            return
        for packed in changed.values():
            for name in packed.references:
                watch.sent.pop(name, None)


def describe(nack: Nack) -> str:
    """A NACK in one line."""
    return f"{label_of(nack.type_url)}: {nack.message}"
