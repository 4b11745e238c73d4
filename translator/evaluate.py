"""The reference evaluator: what Envoy would do with a request, and whether the kernel would carry it.

Pure Python and apart from the kernel image, so that the two can be checked against each other.  Envoy's semantics
are those of `source/common/router/config_impl.cc` and `source/common/http/header_utility.cc`, with what a real Envoy
was seen to do where they leave room.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import re2

from translator.kernel_view import DomainKind, KernelRoute, KernelView, candidates, domain_kind, kernel_view
from translator.limits import Limits
from translator.model import (
    Action,
    ActionKind,
    ClusterRule,
    HeaderMatch,
    ListenerKind,
    ListenerRule,
    PathKind,
    PathMatch,
    QueryMatch,
    RouteConfigRule,
    RouteRule,
    StringKind,
    ViewRules,
    VirtualHostRule,
    WeightedCluster,
)
from translator.reasons import Reason
from translator.request import Request as Request
from translator.request import canonical_path, head_reason
from translator.routes import ascii_lower

_DEFAULT_LIMITS: Final = Limits()
# Matchers that the evaluator knows of but cannot evaluate either.
_NOBODY_KNOWS: Final = frozenset({Reason.MATCH_RUNTIME_FRACTION, Reason.MATCH_OTHER})


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one request.

    `action` is forward, redirect, direct_response, abort (a fault that every request meets), no_route, bad_request,
    or where no HTTP route is asked: passthrough (not captured), tcp (Envoy proxies bytes), unknown (only Envoy can
    tell).  `status` is set for answers Envoy gives by itself.  `route` is "" for a route without a name.
    """

    action: str
    carried_by: str  # "kernel" or "envoy"
    reason: Reason
    listener: str | None = None
    virtual_host: str | None = None
    route: str | None = None
    route_index: int | None = None
    route_position: int | None = None
    virtual_service: str | None = None
    cluster: str | None = None
    path_upstream: str | None = None
    host_upstream: str | None = None
    status: int | None = None

    def as_json(self) -> dict[str, str | int | None]:
        """A dict for `xlb explain -o json`; `reason` by name, "NONE" when the kernel carries the request."""
        return {
            "listener": self.listener,
            "virtual_host": self.virtual_host,
            "route": self.route,
            "route_position": self.route_position,
            "virtual_service": self.virtual_service,
            "action": self.action,
            "cluster": self.cluster,
            "path_upstream": self.path_upstream,
            "host_upstream": self.host_upstream,
            "status": self.status,
            "carried_by": self.carried_by,
            "reason": self.reason.name,
        }


@dataclass(frozen=True, slots=True)
class _Answer:
    """Envoy's side of a `Decision`."""

    action: str
    host: VirtualHostRule | None = None
    route: RouteRule | None = None
    cluster: str | None = None
    path: str | None = None
    authority: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A request as Envoy's router sees it."""

    method: str
    authority: str
    path: str  # normalised
    query: str | None
    headers: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"


def decide(rules: ViewRules, request: Request, random: int = 0, limits: Limits = _DEFAULT_LIMITS) -> Decision:
    """What becomes of a request, with `random` as the stream's 64-bit random number (weighted clusters).

    Why the kernel does not carry it is looked for as the kernel does: the listener, then the head
    (`translator.request.head_reason`), then the rules: the whole configuration, the virtual host, the first
    candidate route that is undecided or matches, its action, its cluster.
    """
    listener = find_listener(rules, request.to)
    if listener is None or listener.kind is ListenerKind.DIRECT:
        name, cluster = (listener.name, listener.cluster) if listener else (None, None)
        return Decision("passthrough", "kernel", Reason.NONE, listener=name, cluster=cluster)
    config = rules.route_configs.get(listener.route_config) if listener.route_config is not None else None
    if config is None:
        action = "tcp" if listener.route_config is None else "no_route"
        status = None if listener.route_config is None else 404
        reason = listener.reason or Reason.ROUTE_CONFIG_MISSING
        return Decision(action, "envoy", reason, listener=listener.name, cluster=listener.cluster, status=status)
    reason = listener.reason
    if listener.kind is ListenerKind.HTTP:
        reason = kernel_reason(config, rules.clusters, request, random, limits)
    elif not reason:
        reason = Reason.LISTENER_OTHER
    answer = _answer(config, rules.clusters, request, random, listener.normalize_path)
    route = answer.route
    return Decision(
        action=answer.action,
        carried_by="envoy" if reason else "kernel",
        reason=reason,
        listener=listener.name,
        virtual_host=answer.host.name if answer.host else None,
        route=route.origin.route if route else None,
        route_index=route.index if route else None,
        route_position=route.origin.position if route else None,
        virtual_service=route.origin.virtual_service if route else None,
        cluster=answer.cluster,
        path_upstream=answer.path,
        host_upstream=answer.authority,
        status=answer.status,
    )


def find_listener(rules: ViewRules, to: tuple[str, int]) -> ListenerRule | None:
    """The listener a connection to an address meets: its own, else any address on the port, else any port."""
    address = ipaddress.ip_address(to[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    wildcard = "::" if address.version == 6 else "0.0.0.0"
    keys = {(rule.address, rule.port): rule for rule in reversed(rules.listeners)}
    for key in ((str(address), to[1]), (wildcard, to[1]), (wildcard, 0)):
        found = keys.get(key)
        # A bound wildcard takes only connections to this host, which an address does not tell.
        if found is not None and not (found.bound and found.address == wildcard):
            return found
    return None


def kernel_reason(
    config: RouteConfigRule,
    clusters: dict[str, ClusterRule],
    request: Request,
    random: int = 0,
    limits: Limits = _DEFAULT_LIMITS,
) -> Reason:
    """Why the kernel does not carry a request that came to a mixed listener; NONE if it does."""
    view = kernel_view(config, limits)
    reason = head_reason(request, frozenset(view.names), limits)
    if reason:
        return reason
    return kernel_route(view, clusters, request, random, config.ignore_port_in_host, limits)[0]


def kernel_route(
    view: KernelView,
    clusters: dict[str, ClusterRule],
    request: Request,
    random: int,
    ignore_port: bool,
    limits: Limits = _DEFAULT_LIMITS,
) -> tuple[Reason, KernelRoute | None]:
    """The rules' part of `kernel_reason`, and the route that matched in the kernel."""
    if view.reason:
        return view.reason, None
    rule = find_virtual_host((host.rule for host in view.hosts), request.host.strip(" \t"), ignore_port)
    if rule is None:
        return Reason.NO_VIRTUAL_HOST, None
    if rule.reason:
        return rule.reason, None
    host = next(host for host in view.hosts if host.rule is rule)
    path = request.path.partition("?")[0].encode("latin-1")
    found, overflow = candidates((route for route in host.routes if route.accepts(path)), limits)
    lines = dict(reversed([*request.lines()]))
    for route in found:
        if route.undecided:
            return route.undecided, route
        if all(_predicate_holds(predicate, request.method, lines) for predicate in route.predicates):
            break
    else:
        return (Reason.BUDGET_CANDIDATES if overflow else Reason.NO_ROUTE), None
    if route.action_reason:
        return route.action_reason, route
    cluster = clusters.get(pick_cluster(route.rule.action.clusters, random))
    return (cluster.reason if cluster else Reason.CLUSTER_MISSING), route


def _predicate_holds(header: HeaderMatch, method: str, lines: dict[str, str]) -> bool:
    value = method if header.name == ":method" else lines.get(header.name)
    if header.kind is StringKind.PRESENT:
        return (value is not None) != header.invert
    return value is not None and value == header.value.encode().decode("latin-1")


def pick_cluster(clusters: tuple[WeightedCluster, ...], random: int) -> str:
    """The cluster for a random number: modulo the sum of weights, cumulative walk in order."""
    left = random % sum(c.weight for c in clusters)
    for cluster in clusters:
        if left < cluster.weight:
            return cluster.cluster
        left -= cluster.weight
    raise AssertionError("the remainder is smaller than the sum")


def find_virtual_host(hosts: Iterable[VirtualHostRule], host: str, ignore_port: bool) -> VirtualHostRule | None:
    """The virtual host for a Host value: exact, longest `*suffix`, longest `prefix*`, `*`; the first of duplicates."""
    name = ascii_lower(_without_port(host) if ignore_port else host)
    best: tuple[int, int] = (0, 0)
    found: VirtualHostRule | None = None
    for candidate in hosts:
        for domain in candidate.domains:
            kind, text = domain_kind(domain)
            if kind is DomainKind.EXACT:
                rank = 4 if name == text else 0
            elif kind is DomainKind.SUFFIX:
                rank = 3 if name.endswith(text) and len(name) > len(text) else 0
            elif kind is DomainKind.PREFIX:
                rank = 2 if name.startswith(text) and len(name) > len(text) else 0
            else:
                rank = 1
            if (rank, len(text)) > best and rank:
                best, found = (rank, len(text)), candidate
    return found


def _without_port(host: str) -> str:
    # HeaderUtility::getPortStart: the last colon, unless it stands inside brackets; what follows need not be digits.
    colon = host.rfind(":")
    return host[:colon] if colon >= 0 and host.rfind("]") < colon else host


def _answer(
    config: RouteConfigRule, clusters: dict[str, ClusterRule], request: Request, random: int, normalize: bool
) -> _Answer:
    seen = _as_seen(request, normalize)
    if seen is None:
        return _Answer("bad_request", status=400)
    host = find_virtual_host(config.virtual_hosts, seen.authority, config.ignore_port_in_host)
    if host is None:
        return _Answer("no_route", status=404)
    for route in host.routes:
        if route.path.kind is PathKind.OTHER:
            return _Answer("unknown", host)
        if not route_matches(route, seen):
            continue
        kinds = {h.kind for h in route.headers} | {q.kind for q in route.queries}
        if route.match_reason in _NOBODY_KNOWS or StringKind.OTHER in kinds:
            return _Answer("unknown", host, route)
        return _act(host, route, clusters, seen, random)
    return _Answer("no_route", host, status=404)


def _as_seen(request: Request, normalize: bool) -> _Seen | None:
    """The request after the connection manager's own changes; None if it answers 400."""
    target, authority = request.path, request.host.strip(" \t")
    absolute = re.match(r"https?://([^/?#]*)", target, re.IGNORECASE)
    if absolute:
        authority, target = absolute[1], target[absolute.end() :]
        target = target if target.startswith("/") else f"/{target}"
    if "#" in target or not authority:
        return None
    path, mark, query = target.partition("?")
    if normalize and path.startswith("/"):
        path = canonical_path(path)
    lines = [(n, v) for n, v in [*request.lines()][1:] if n not in _REMOVED and not _INTERNAL.fullmatch(n)]
    names = {name for name, _ in lines}
    for name, value in (("x-forwarded-proto", "http"), ("x-request-id", "(generated)")):
        if name not in names:
            lines.append((name, value))
    return _Seen(request.method, authority, path, query if mark else None, tuple(lines))


# ConnectionManagerUtility::mutateRequestHeaders, for a request from outside (use_remote_address is false).
_REMOVED: Final = frozenset(
    {"connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
    | {"x-forwarded-client-cert"}
)
_INTERNAL: Final = re.compile(
    "x-envoy-(internal|retry-on|retry-grpc-on|max-retries|upstream-.*|retriable-.*|force-trace|ip-tags|hedge-.*"
    "|expected-rq-timeout-ms)"
)


def route_matches(route: RouteRule, seen: _Seen) -> bool:
    """Whether all readable matchers of a route hold; those of kind OTHER count as holding."""
    return (
        _path_holds(route.path, seen.path)
        and all(_header_holds(header, seen) for header in route.headers)
        and all(_query_holds(query, seen.query or "") for query in route.queries)
    )


def _path_holds(match: PathMatch, path: str) -> bool:
    if match.kind is PathKind.REGEX:
        return _full_match(match.value, path)
    value = match.value.encode().decode("latin-1")
    if not match.case_sensitive:
        value, path = ascii_lower(value), ascii_lower(path)
    if match.kind is PathKind.EXACT:
        return path == value
    if match.kind is PathKind.PREFIX:
        return path.startswith(value)
    return path == value or path.startswith(f"{value}/")


def _full_match(pattern: str, text: str) -> bool:
    # RE2 in Envoy reads UTF-8.
    return re2.fullmatch(pattern.encode(), text.encode("latin-1")) is not None


def _text_holds(kind: StringKind, wanted: str, ignore_case: bool, text: str) -> bool:
    if kind is StringKind.REGEX:
        return _full_match(wanted, text)
    wanted = wanted.encode().decode("latin-1")
    if ignore_case:
        wanted, text = ascii_lower(wanted), ascii_lower(text)
    return {
        StringKind.EXACT: text == wanted,
        StringKind.PREFIX: text.startswith(wanted),
        StringKind.SUFFIX: text.endswith(wanted),
        StringKind.CONTAINS: wanted in text,
    }.get(kind, True)


def _header_holds(header: HeaderMatch, seen: _Seen) -> bool:
    if header.kind is StringKind.OTHER:
        return True
    pseudo = {
        ":method": seen.method,
        ":authority": seen.authority,
        "host": seen.authority,
        ":path": seen.target,
        ":scheme": "http",
    }
    if header.name in pseudo:
        values = [pseudo[header.name]]
    else:
        values = [value for name, value in seen.headers if name == header.name]
    if not values:
        if not header.treat_missing_as_empty:
            # A string matcher fails on a missing header even when inverted.
            return header.kind is StringKind.PRESENT and header.invert
        values = [""]
    if header.kind is StringKind.PRESENT:
        return not header.invert
    # Seen in Envoy 1.40: one line that matches is enough.
    return any(_text_holds(header.kind, header.value, header.ignore_case, v) for v in values) != header.invert


def _query_holds(query: QueryMatch, text: str) -> bool:
    name = query.name.encode().decode("latin-1")
    for part in text.split("&"):
        key, _, value = part.partition("=")
        if key == name:
            # The first occurrence counts; nothing is percent-decoded.
            return query.kind is StringKind.PRESENT or _text_holds(query.kind, query.value, query.ignore_case, value)
    return False


def _act(
    host: VirtualHostRule, route: RouteRule, clusters: dict[str, ClusterRule], seen: _Seen, random: int
) -> _Answer:
    action = route.action
    if action.abort and action.abort.per_million >= 1_000_000:
        return _Answer("abort", host, route, status=action.abort.http_status)
    if action.kind is ActionKind.REDIRECT and action.redirect:
        return _Answer("redirect", host, route, status=action.redirect.code)
    if action.kind is ActionKind.DIRECT_RESPONSE:
        return _Answer("direct_response", host, route, status=action.direct_status)
    if action.kind is ActionKind.NONE or not action.clusters or not sum(c.weight for c in action.clusters):
        return _Answer("unknown", host, route)
    name = pick_cluster(action.clusters, random)
    cluster = clusters.get(name)
    if cluster is None or cluster.reason is Reason.NO_HEALTHY_ENDPOINT:
        return _Answer("forward", host, route, name, status=503)
    authority = action.host_rewrite or seen.authority
    return _Answer("forward", host, route, name, _rewritten(action, route.path, seen), authority)


def _rewritten(action: Action, match: PathMatch, seen: _Seen) -> str | None:
    """The request target upstream; None where only Envoy can tell (format strings)."""
    query = "" if seen.query is None else f"?{seen.query}"
    if action.path_rewrite is not None:
        return None
    if action.prefix_rewrite is not None:
        # A regex has no prefix to replace: the whole path goes.
        rest = "" if match.kind is PathKind.REGEX else seen.path[len(match.value.encode()) :]
        return f"{action.prefix_rewrite}{rest}{query}"
    if action.regex_rewrite is not None:
        pattern, substitution = action.regex_rewrite
        path = seen.path.encode("latin-1")
        new: bytes = re2.sub(pattern.encode(), lambda found: _expand(substitution, found), path)
        return new.decode("latin-1") + query
    return seen.target


def _expand(substitution: str, found: re.Match[bytes]) -> bytes:
    """The replacement in RE2's notation: a backslash and a digit, or two backslashes for one."""

    def group(reference: re.Match[bytes]) -> bytes:
        mark = reference[1]
        return b"\\" if mark == b"\\" else found.group(int(mark)) or b""

    return re.sub(rb"\\([0-9\\])", group, substitution.encode())
