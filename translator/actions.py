"""What an Envoy route does with a request it matched -> `Action`, and the reason if only Envoy can do it.

Of several reasons the one with the lowest number is given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

from translator.closed import is_empty, type_name, unhandled, unpack
from translator.model import Action, ActionKind, FaultAbort, Redirect, WeightedCluster
from translator.reasons import Reason

FAULT_FILTER: Final = "envoy.filters.http.fault"
CORS_FILTER: Final = "envoy.filters.http.cors"
_FAULT_TYPE: Final = "envoy.extensions.filters.http.fault.v3.HTTPFault"

_ROUTE: Final = frozenset(
    {
        "name",
        "match",
        "route",
        "redirect",
        "direct_response",
        "metadata",
        "decorator",
        "typed_per_filter_config",
        "request_headers_to_add",
        "request_headers_to_remove",
        "response_headers_to_add",
        "response_headers_to_remove",
        "stat_prefix",
    }
)
_HEADER_EDITS: Final = (
    "request_headers_to_add",
    "request_headers_to_remove",
    "response_headers_to_add",
    "response_headers_to_remove",
)
_REDIRECT_CODES: Final = (301, 302, 303, 307, 308)  # RedirectAction.RedirectResponseCode
_PER_MILLION: Final = (10_000, 100, 1)  # FractionalPercent.DenominatorType: HUNDRED, TEN_THOUSAND, MILLION

# Fields of RouteAction whose presence alone decides the reason.
_BY_FIELD: Final = (
    ("prefix_rewrite", Reason.ACTION_REWRITE),
    ("regex_rewrite", Reason.ACTION_REWRITE),
    ("path_rewrite", Reason.ACTION_REWRITE),
    ("path_rewrite_policy", Reason.ACTION_REWRITE),
    ("host_rewrite_literal", Reason.ACTION_REWRITE),
    ("auto_host_rewrite", Reason.ACTION_REWRITE),
    ("host_rewrite_header", Reason.ACTION_REWRITE),
    ("host_rewrite_path_regex", Reason.ACTION_REWRITE),
    ("host_rewrite", Reason.ACTION_REWRITE),
    ("append_x_forwarded_host", Reason.ACTION_HEADER_EDIT),
    ("request_mirror_policies", Reason.ACTION_MIRROR),
    ("idle_timeout", Reason.ACTION_TIMEOUT),
    ("flush_timeout", Reason.ACTION_TIMEOUT),
    ("grpc_timeout_offset", Reason.ACTION_TIMEOUT),
    ("retry_policy_typed_config", Reason.ACTION_RETRY_POLICY),
    ("hash_policy", Reason.ACTION_HASH_POLICY),
    ("cors", Reason.ACTION_CORS),
    ("rate_limits", Reason.ACTION_RATE_LIMIT),
    ("include_vh_rate_limits", Reason.ACTION_RATE_LIMIT),
    ("upgrade_configs", Reason.ACTION_UPGRADE),
)
_FORWARD: Final = frozenset(
    {
        "cluster",
        "cluster_header",
        "cluster_specifier_plugin",
        "inline_cluster_specifier_plugin",
        "weighted_clusters",
        "timeout",
        "max_grpc_timeout",
        "max_stream_duration",
        "retry_policy",
        *(name for name, _ in _BY_FIELD),
    }
)
_WEIGHT: Final = frozenset({"name", "weight"})

# The policy istiod gives every route (`networking/core/route/retry`).  For HTTP/1.1 it comes down to connect-failure:
# refused-stream is HTTP/2's, unavailable and cancelled are gRPC statuses, the list of status codes is empty.  The
# fast path satisfies it by taking another established connection before a byte is sent.
_DEFAULT_RETRY_ON: Final = frozenset(
    {"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"}
)
_DEFAULT_RETRIES: Final = 2
_DEFAULT_RETRY: Final = frozenset(
    {"retry_on", "num_retries", "retry_host_predicate", "host_selection_retry_max_attempts"}
)
_PREVIOUS_HOSTS: Final = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"


class _Reasons:
    """Collects reasons."""

    def __init__(self) -> None:
        self._found: set[Reason] = set()

    def add(self, reason: Reason) -> None:
        if reason is not Reason.NONE:
            self._found.add(reason)

    @property
    def first(self) -> Reason:
        return min(self._found, default=Reason.NONE)


def read_action(route: Any, field: str) -> tuple[Action, Reason]:
    """Read the action of one `route.v3.Route`; `field` is its path, for errors.

    :raises Malformed: for what Envoy would refuse
    """
    reasons = _Reasons()
    specifier = route.WhichOneof("action")
    if specifier == "route":
        action = _forward(route.route, reasons)
    elif specifier == "redirect":
        reasons.add(Reason.ACTION_REDIRECT)
        action = _redirect(route.redirect, reasons)
    elif specifier == "direct_response":
        reasons.add(Reason.ACTION_DIRECT_RESPONSE)
        action = _direct_response(route.direct_response, reasons)
    else:
        reasons.add(Reason.ACTION_OTHER)
        action = Action(ActionKind.NONE)
    if any(getattr(route, name) for name in _HEADER_EDITS):
        reasons.add(Reason.ACTION_HEADER_EDIT)
    abort = None
    for name, packed in route.typed_per_filter_config.items():
        if name == FAULT_FILTER and type_name(packed) == _FAULT_TYPE:
            reasons.add(Reason.ACTION_FAULT)
            abort = _abort(unpack(packed, HTTPFault, f"{field}.typed_per_filter_config[{name}]"))
        elif name == CORS_FILTER:
            reasons.add(Reason.ACTION_CORS)
        else:
            reasons.add(Reason.ACTION_FILTER_CONFIG)
    if unhandled(route, _ROUTE):
        reasons.add(Reason.ACTION_OTHER)
    if abort is not None:
        action = replace(action, abort=abort)
    return action, reasons.first


def _forward(forward: Any, reasons: _Reasons) -> Action:
    for name, reason in _BY_FIELD:
        if _is_set(forward, name):
            reasons.add(reason)
    if unhandled(forward, _FORWARD):
        reasons.add(Reason.ACTION_OTHER)
    timeout = _timeout(forward, reasons)
    if forward.HasField("retry_policy") and not _is_default_retry(forward.retry_policy):
        reasons.add(Reason.ACTION_RETRY_POLICY)
    regex = None
    if forward.HasField("regex_rewrite"):
        regex = (str(forward.regex_rewrite.pattern.regex), str(forward.regex_rewrite.substitution))
    return Action(
        ActionKind.FORWARD,
        clusters=_clusters(forward, reasons),
        prefix_rewrite=str(forward.prefix_rewrite) or None,
        path_rewrite=str(forward.path_rewrite) or None,
        regex_rewrite=regex,
        host_rewrite=str(forward.host_rewrite_literal) or None,
        timeout_s=timeout,
    )


def _is_set(message: Any, name: str) -> bool:
    try:
        return bool(message.HasField(name))
    except ValueError:  # repeated, or a scalar without presence
        return bool(getattr(message, name))


def _timeout(forward: Any, reasons: _Reasons) -> float:
    # Unset is Envoy's 15 s, and 0 is none; istiod always sets it.
    seconds = _seconds(forward.timeout) if forward.HasField("timeout") else 15.0
    if seconds:
        reasons.add(Reason.ACTION_TIMEOUT)
    # Only gRPC requests heed it, and those are Envoy's anyway; still, what is not 0 was not looked into.
    if forward.HasField("max_grpc_timeout") and _seconds(forward.max_grpc_timeout):
        reasons.add(Reason.ACTION_TIMEOUT)
    if forward.HasField("max_stream_duration"):
        limits = forward.max_stream_duration
        if unhandled(limits, frozenset({"max_stream_duration", "grpc_timeout_header_max"})) or any(
            _seconds(getattr(limits, name)) for name in ("max_stream_duration", "grpc_timeout_header_max")
        ):
            reasons.add(Reason.ACTION_TIMEOUT)
    return seconds


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _clusters(forward: Any, reasons: _Reasons) -> tuple[WeightedCluster, ...]:
    specifier = forward.WhichOneof("cluster_specifier")
    if specifier == "cluster":
        return (WeightedCluster(str(forward.cluster)),)
    if specifier != "weighted_clusters":
        reasons.add(Reason.ACTION_CLUSTER_HEADER)
        return ()
    weighted = forward.weighted_clusters
    found = []
    for item in weighted.clusters:
        if any(getattr(item, name) for name in _HEADER_EDITS):
            reasons.add(Reason.ACTION_HEADER_EDIT)
        if item.typed_per_filter_config:
            reasons.add(Reason.ACTION_FILTER_CONFIG)
        if item.host_rewrite_literal:
            reasons.add(Reason.ACTION_REWRITE)
        if item.cluster_header:
            reasons.add(Reason.ACTION_CLUSTER_HEADER)
        known = _WEIGHT.union(_HEADER_EDITS, ("typed_per_filter_config", "host_rewrite_literal", "cluster_header"))
        if unhandled(item, known):
            reasons.add(Reason.ACTION_OTHER)
        found.append(WeightedCluster(str(item.name), int(item.weight.value)))
    total = sum(item.weight for item in found)
    stated = int(weighted.total_weight.value) if weighted.HasField("total_weight") else total
    if unhandled(weighted, frozenset({"clusters", "total_weight"})) or stated != total or total <= 0:
        reasons.add(Reason.ACTION_OTHER)
    return tuple(found)


def _is_default_retry(policy: Any) -> bool:
    if unhandled(policy, _DEFAULT_RETRY):
        return False
    conditions = {part.strip() for part in str(policy.retry_on).split(",") if part.strip()}
    if not conditions <= _DEFAULT_RETRY_ON:
        return False
    if policy.HasField("num_retries") and policy.num_retries.value > _DEFAULT_RETRIES:
        return False
    return all(
        unhandled(predicate, frozenset({"name", "typed_config"})) is None
        and type_name(predicate.typed_config) == _PREVIOUS_HOSTS
        for predicate in policy.retry_host_predicate
    )


def _redirect(redirect: Any, reasons: _Reasons) -> Action:
    known = {
        "https_redirect",
        "scheme_redirect",
        "host_redirect",
        "port_redirect",
        "path_redirect",
        "prefix_rewrite",
        "regex_rewrite",
        "response_code",
        "strip_query",
    }
    code = int(redirect.response_code)
    if unhandled(redirect, frozenset(known)) or not 0 <= code < len(_REDIRECT_CODES):
        reasons.add(Reason.ACTION_OTHER)
        code = 0
    return Action(
        ActionKind.REDIRECT,
        redirect=Redirect(
            code=_REDIRECT_CODES[code],
            scheme="https" if redirect.https_redirect else str(redirect.scheme_redirect) or None,
            host=str(redirect.host_redirect) or None,
            port=int(redirect.port_redirect) or None,
            path=str(redirect.path_redirect) or None,
            prefix_rewrite=str(redirect.prefix_rewrite) or None,
            strip_query=bool(redirect.strip_query),
        ),
    )


def _direct_response(response: Any, reasons: _Reasons) -> Action:
    if unhandled(response, frozenset({"status", "body", "body_format"})):
        reasons.add(Reason.ACTION_OTHER)
    body = b""
    source = response.body.WhichOneof("specifier")
    if source == "inline_bytes":
        body = bytes(response.body.inline_bytes)
    elif source == "inline_string":
        body = str(response.body.inline_string).encode()
    return Action(ActionKind.DIRECT_RESPONSE, direct_status=int(response.status), direct_body=body)


def _abort(fault: HTTPFault) -> FaultAbort | None:
    """The abort that every request of the route may meet, as far as the configuration alone tells."""
    kind = fault.abort.WhichOneof("error_type")
    if unhandled(fault, frozenset({"abort", "delay"})) or kind not in ("http_status", "grpc_status"):
        return None
    percentage = fault.abort.percentage
    if is_empty(percentage) or not 0 <= percentage.denominator < len(_PER_MILLION):
        return None
    # A gRPC status travels in a header or trailer of an HTTP 200.
    status = int(fault.abort.http_status) if kind == "http_status" else 200
    return FaultAbort(status, int(percentage.numerator) * _PER_MILLION[percentage.denominator])
