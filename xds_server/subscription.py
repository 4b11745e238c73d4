"""What one ADS client asks for, and what it must answer: the state-of-the-world protocol without any I/O.

Feed it the responses and the names wanted; it returns the requests to write.  Rules and their sources:

- Names change at once, also while a response is unanswered: a cluster set cannot be applied before the endpoints it
  names arrived, so waiting for the ACK would be waiting for ever.  Such a request carries the newest nonce and the
  version last *accepted*, which is how the xDS protocol tells it from an ACK.
- It may cross a response on the way, and then the server ignores it for its old nonce (istiod sends CDS and EDS in
  one go, so this is what happens whenever a service is added).  Most clients then ACK that response at once and so
  repeat the names; we ACK later, so `insist` repeats them while something is missing.
- A NACK never carries changed names: istiod only records it and does not look at the names
  (`pilot/pkg/xds/ads.go:shouldRespond`).
- Only the newest nonce of a type is answered: an answer to an older one is stale and would be ignored.
- A stream starts with the node in its first request, empty nonces and the versions accepted before.
- EDS and RDS without names is no request at all: an empty list in a first request means "all" to some servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from xds_server.cache import ResourceCache
from xds_server.resources import TypeUrl, type_of

# google.rpc.Code.INVALID_ARGUMENT
_INVALID_ARGUMENT: Final = 3
# A NACK names every rejected resource; a server keeps the text per connection and type.
MAX_NACK_CHARS: Final = 16_384


@dataclass(frozen=True, slots=True)
class Receipt:
    """One response that wants an answer; valid for the stream it came on."""

    type_url: TypeUrl
    version: str
    nonce: str
    stream: int


@dataclass(slots=True)
class _Watch:
    names: frozenset[str] | None  # None: wildcard
    accepted: str = ""  # version of the last ACK; survives a reconnect
    nonce: str = ""  # of the newest response on this stream
    asked: bool = False  # on this stream
    named_at: str = ""  # the nonce with which the server was last told the present names
    answer: tuple[str, str | None] | None = None  # (nonce, error) last given on this stream


class Subscription:
    """Subscriptions of one client over the life of its streams.

    CDS and LDS are wildcard until `want` names resources of theirs; EDS and RDS ask for nothing until then.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stream = 0
        self._is_open = False
        self._first = True
        self._watches = {t: _Watch(names=None if t.state_of_the_world else frozenset()) for t in TypeUrl}

    def open(self) -> list[DiscoveryRequest]:
        """A new stream begins: its first requests, in push order.  Nonces and receipts of the old one are void."""
        self._stream += 1
        self._is_open = True
        self._first = True
        requests = []
        for type_url, watch in self._watches.items():
            watch.nonce = ""
            watch.answer = None
            watch.named_at = ""
            watch.asked = watch.names is None or bool(watch.names)
            if watch.asked:
                requests.append(self._request(type_url, watch))
        return requests

    def close(self) -> None:
        """The stream ended; until `open`, nothing is to be sent."""
        self._is_open = False

    def names(self, type_url: TypeUrl) -> frozenset[str] | None:
        """What is asked for; None means everything."""
        return self._watches[type_url].names

    def accepted_version(self, type_url: TypeUrl) -> str:
        return self._watches[type_url].accepted

    def want(self, type_url: TypeUrl, names: Iterable[str] | None) -> list[DiscoveryRequest]:
        """Ask for exactly these names (None: for everything) from now on."""
        watch = self._watches[type_url]
        new = None if names is None else frozenset(names)
        if new == watch.names:
            return []
        watch.names = new
        if not self._is_open or (not watch.asked and new is not None and not new):
            return []
        watch.asked = True
        watch.named_at = watch.nonce
        return [self._request(type_url, watch)]

    def insist(self, type_url: TypeUrl) -> list[DiscoveryRequest]:
        """Repeat the names if a response came since they were sent: it may have crossed them."""
        watch = self._watches[type_url]
        if not self._is_open or not watch.asked or watch.named_at == watch.nonce:
            return []
        watch.named_at = watch.nonce
        return [self._request(type_url, watch)]

    def receive(self, response: DiscoveryResponse) -> Receipt | None:
        """Note a response.  None for a type that was not asked for, which gets no answer."""
        type_url = type_of(response.type_url)
        if type_url is None or not self._watches[type_url].asked:
            return None
        self._watches[type_url].nonce = response.nonce
        return Receipt(type_url, response.version_info, response.nonce, self._stream)

    def ack(self, receipt: Receipt) -> list[DiscoveryRequest]:
        """The response is in force.  Nothing to send if a newer one of its type came, or it was ACKed before."""
        return self._answer(receipt, None)

    def nack(self, receipt: Receipt, reason: str) -> list[DiscoveryRequest]:
        """The response, or part of it, cannot be taken; `reason` names the resources.

        A later `ack` of the same receipt is allowed: what failed may succeed when it is tried again.
        """
        return self._answer(receipt, reason[:MAX_NACK_CHARS])

    def _answer(self, receipt: Receipt, error: str | None) -> list[DiscoveryRequest]:
        watch = self._watches[receipt.type_url]
        is_current = self._is_open and receipt.stream == self._stream and receipt.nonce == watch.nonce
        if not is_current or watch.answer == (receipt.nonce, error):
            return []
        watch.answer = (receipt.nonce, error)
        if error is None:
            watch.accepted = receipt.version
            watch.named_at = receipt.nonce
        request = self._request(receipt.type_url, watch)
        if error is not None:
            request.error_detail.code = _INVALID_ARGUMENT
            request.error_detail.message = error
        return [request]

    def _request(self, type_url: TypeUrl, watch: _Watch) -> DiscoveryRequest:
        request = DiscoveryRequest(
            version_info=watch.accepted,
            resource_names=sorted(watch.names or ()),
            type_url=type_url,
            response_nonce=watch.nonce,
        )
        if self._first:
            request.node.CopyFrom(self._node)
            self._first = False
        return request


def ask_for_references(subscription: Subscription, cache: ResourceCache) -> list[DiscoveryRequest]:
    """What to send so that all that the cached clusters and listeners refer to arrives."""
    missing = {m.type_url for m in cache.missing()}
    requests = []
    for type_url in (TypeUrl.ENDPOINT, TypeUrl.ROUTE):
        requests += subscription.want(type_url, cache.names(type_url))
        if type_url in missing:
            requests += subscription.insist(type_url)
    return requests


def nack_reason(problems: Sequence[str]) -> str:
    """One NACK text out of one line per rejected resource."""
    count = len(problems)
    return f"{count} resource{'s' if count != 1 else ''} rejected: " + "; ".join(problems)
