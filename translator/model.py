"""The rule model: what xDS resources say, past the protobuf edge.

Frozen and slotted throughout.  Order is Envoy's.  A rule that the kernel cannot carry out exactly carries the
`Reason`; a rule whose *match* cannot be decided by the kernel says so apart from its action, because such a rule
must neither shadow nor be shadowed by another (see `RouteRule.match_reason`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from translator.reasons import Reason


class PathKind(Enum):
    EXACT = "exact"
    PREFIX = "prefix"
    PATH_SEPARATED_PREFIX = "path_separated_prefix"
    REGEX = "regex"  # RE2, full match
    OTHER = "other"  # connect_matcher, path_match_policy: never evaluated


@dataclass(frozen=True, slots=True)
class PathMatch:
    kind: PathKind
    value: str
    case_sensitive: bool = True


class StringKind(Enum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"
    PRESENT = "present"
    OTHER = "other"  # not evaluated


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One `route.v3.HeaderMatcher`; `name` is lower-case, and may be `:method`, `:authority`, `:scheme`, `:path`."""

    name: str
    kind: StringKind
    value: str = ""
    invert: bool = False
    treat_missing_as_empty: bool = False
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class QueryMatch:
    name: str
    kind: StringKind
    value: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule comes from. `virtual_service` is "namespace/name"; None for routes istiod makes by itself."""

    virtual_service: str | None
    route: str  # the xDS route name; "" when unnamed
    position: int  # index among the routes of its virtual host


class ActionKind(Enum):
    FORWARD = "forward"
    REDIRECT = "redirect"
    DIRECT_RESPONSE = "direct_response"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    cluster: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Redirect:
    code: int = 301
    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None
    prefix_rewrite: str | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class FaultAbort:
    """Percentage in parts per million, as `type.v3.FractionalPercent` is normalised here."""

    http_status: int
    per_million: int


@dataclass(frozen=True, slots=True)
class Action:
    kind: ActionKind
    clusters: tuple[WeightedCluster, ...] = ()
    redirect: Redirect | None = None
    direct_status: int | None = None
    direct_body: bytes = b""
    prefix_rewrite: str | None = None
    path_rewrite: str | None = None
    regex_rewrite: tuple[str, str] | None = None  # pattern, substitution
    host_rewrite: str | None = None
    timeout_s: float = 0.0  # 0: none
    abort: FaultAbort | None = None


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One Envoy route.

    `match_reason` other than NONE: the kernel cannot tell whether this route matches; a request that gets as far as
    this route goes to Envoy.  `action_reason` other than NONE: the kernel can tell, but Envoy must carry it out.
    """

    index: int  # among all routes of the route configuration: what the kernel reports
    origin: Origin
    path: PathMatch
    headers: tuple[HeaderMatch, ...]
    queries: tuple[QueryMatch, ...]
    action: Action
    match_reason: Reason = Reason.NONE
    action_reason: Reason = Reason.NONE


@dataclass(frozen=True, slots=True)
class VirtualHostRule:
    """`domains` as xDS has them: exact, `*suffix`, `prefix*`, `*`; lower-case."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[RouteRule, ...]
    reason: Reason = Reason.NONE  # the whole virtual host belongs to Envoy


@dataclass(frozen=True, slots=True)
class RouteConfigRule:
    name: str
    virtual_hosts: tuple[VirtualHostRule, ...]
    ignore_port_in_host: bool = False
    reason: Reason = Reason.NONE  # the whole route configuration belongs to Envoy


class LbPolicy(IntEnum):
    """Numbers are the kernel's (`enum xlb_lb` in xlb_types.h)."""

    ROUND_ROBIN = 0
    RANDOM = 1
    LEAST_REQUEST = 2


@dataclass(frozen=True, slots=True)
class EndpointRule:
    address: str  # IP literal
    port: int
    workload: str = ""  # "name" of metadata istio.workload, for people
    weight: int = 1
    mtls: bool = False


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """`endpoints` holds only those that may be chosen (healthy, priority 0)."""

    name: str
    lb: LbPolicy
    endpoints: tuple[EndpointRule, ...]
    reason: Reason = Reason.NONE


class ListenerKind(Enum):
    HTTP = "http"  # one HTTP connection manager: kernel and Envoy may mix on a connection
    ENVOY = "envoy"  # all of it is Envoy's, decided at connect
    DIRECT = "direct"  # plain pass-through to the original destination: not captured at all


@dataclass(frozen=True, slots=True)
class ListenerRule:
    """What a destination meets.

    `address` "0.0.0.0" or "::" takes every destination address on `port`; the catch-all (virtualOutbound) has
    `port` 0.  `bound` listeners (interception mode NONE) are captured at exactly their own address.  A listener with
    several addresses makes several rules of one name.

    `route_config` is also set for an ENVOY listener that does HTTP, `cluster` for one whose default is a single TCP
    cluster: so that what Envoy will do can be explained.
    """

    name: str
    address: str
    port: int
    kind: ListenerKind
    route_config: str | None = None  # for HTTP; inline route configurations get the listener's name
    reason: Reason = Reason.NONE
    bound: bool = False
    cluster: str | None = None
    normalize_path: bool = True  # Envoy normalises the path before it looks for a route


@dataclass(frozen=True, slots=True)
class Rejected:
    """One resource that cannot be taken: what a NACK says."""

    type_url: str
    name: str
    field: str
    why: str


@dataclass(frozen=True, slots=True)
class ViewRules:
    """All rules of one view (workload class), consistent with each other."""

    listeners: tuple[ListenerRule, ...] = ()
    route_configs: dict[str, RouteConfigRule] = field(default_factory=dict)
    clusters: dict[str, ClusterRule] = field(default_factory=dict)
    rejected: tuple[Rejected, ...] = ()
    warnings: tuple[str, ...] = ()
