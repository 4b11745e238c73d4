"""Why a request is carried by Envoy and not by the kernel: one closed, numbered list.

The numbers are shared with the kernel programs (`bpf/build` generates `xlb_reasons.h` from this enum), with the
counters (`xlb_counters` is indexed by them), with `xlb explain` and with the documentation.  A number is never reused.
"""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """`NONE` means "the kernel carries it"; every other member names what sends a request to Envoy."""

    NONE = 0

    # 1-49: found in the request, by the kernel's parser.
    NOT_HTTP11 = 1  # HTTP/1.0, the HTTP/2 preface, TLS or other bytes
    HEAD_INCOMPLETE = 2  # the head was not whole when it had to be decided
    HEAD_TOO_LONG = 3
    TOO_MANY_HEADERS = 4
    HEADER_SYNTAX = 5  # bare CR or LF, obs-fold, space before the colon, NUL ... (RFC 9112 section 5)
    AMBIGUOUS_FRAMING = 6  # content-length twice, or with transfer-encoding, or not a number (RFC 9112 section 6.3)
    TRANSFER_CODING = 7  # a coding other than "chunked"
    EXPECT = 8
    UPGRADE = 9  # upgrade, CONNECT: tunnels
    HOP_BY_HOP_HEADER = 10  # te, proxy-connection, connection options other than close and keep-alive
    X_ENVOY_HEADER = 11  # x-envoy-*, x-forwarded-client-cert, empty x-forwarded-proto: Envoy strips or honours them
    HOST_HEADER = 12  # none, several, or one the kernel does not read (userinfo, non-ASCII ...)
    TARGET_FORM = 13  # absolute-form, authority-form, "*"
    PATH_NORMALIZATION = 14  # a path that Envoy's normalisation might change
    REPEATED_HEADER = 15  # a header that a route looks at comes in several lines
    GRPC = 16  # content-type application/grpc*
    PIPELINED = 17  # sent before the previous response was complete
    BODY_TOO_LARGE = 18  # beyond what may be queued at a backend without back pressure
    METHOD = 19  # none of the usual ones: Envoy answers 400 to those that it does not know

    # 50-69: state of the data path when the request came.
    CONNECTION_RELAYED = 50  # an earlier request on this connection went to the relay
    NO_IMAGE = 51  # no rules in force for this listener
    POOL_EMPTY = 52  # no idle connection to the chosen endpoint yet
    ENDPOINT_NOT_LOCAL = 53  # the endpoint's sockets are in no cgroup of ours
    REDIRECT_FAILED = 54
    PARTIAL_WRITE = 55  # the kernel's position in the stream is not certain any more
    BACK_PRESSURE = 56
    NO_STATE = 57  # connection state could not be kept (map full)
    BYPASSED = 58  # `xlb bypass` says so

    # 70-99: the rule's match cannot be decided exactly by the kernel.
    MATCH_REGEX = 70
    MATCH_PATH_KIND = 71  # path-separated prefix, path template, CONNECT matcher
    MATCH_CASE_INSENSITIVE = 72
    MATCH_HEADER_KIND = 73  # prefix, suffix, contains, regex, range, inverted string ...
    MATCH_QUERY = 74
    MATCH_RUNTIME_FRACTION = 75
    MATCH_OTHER = 76  # grpc, tls_context, dynamic_metadata, filter_state ...
    HOST_WILDCARD_KIND = 77

    # 100-139: the rule's action is Envoy's.
    ACTION_REDIRECT = 100
    ACTION_DIRECT_RESPONSE = 101
    ACTION_REWRITE = 102
    ACTION_HEADER_EDIT = 103
    ACTION_FAULT = 104
    ACTION_CORS = 105
    ACTION_MIRROR = 106
    ACTION_TIMEOUT = 107
    ACTION_RETRY_POLICY = 108
    ACTION_HASH_POLICY = 109
    ACTION_FILTER_CONFIG = 110  # typed_per_filter_config other than fault and cors
    ACTION_CLUSTER_HEADER = 111  # cluster_header, cluster_specifier_plugin
    ACTION_RATE_LIMIT = 112
    ACTION_UPGRADE = 113
    ACTION_OTHER = 114  # a field this version does not know
    NO_ROUTE = 115  # the virtual host has no matching route: Envoy answers 404
    NO_VIRTUAL_HOST = 116

    # 140-179: the cluster or its endpoints.
    CLUSTER_MISSING = 140
    NO_HEALTHY_ENDPOINT = 141
    CLUSTER_ORIGINAL_DST = 142
    CLUSTER_DNS = 143
    CLUSTER_TYPE = 144
    LB_POLICY = 145
    LB_WEIGHTS = 146
    LB_LOCALITY = 147
    LB_PRIORITY = 148
    LB_SLOW_START = 149
    CIRCUIT_BREAKER = 150
    OUTLIER_DETECTION = 151
    HEALTH_CHECK = 152
    UPSTREAM_TLS = 153
    ENDPOINT_MTLS = 154  # tlsMode=istio: needs workload identity
    UPSTREAM_PROTOCOL = 155  # HTTP/2 and other protocol options
    CLUSTER_FILTER = 156
    CLUSTER_OTHER = 157
    ENDPOINT_ADDRESS = 158  # pipe, host name, internal address
    PANIC_THRESHOLD = 159

    # 180-199: the listener or the whole route configuration.
    LISTENER_TCP = 180
    LISTENER_TLS = 181
    LISTENER_OTHER = 182
    HTTP_FILTER = 183  # an HTTP filter the kernel knows nothing about
    HCM_OPTION = 184
    ROUTE_CONFIG_MISSING = 185
    ROUTE_CONFIG_OPTION = 186
    VIRTUAL_HOST_OPTION = 187
    SCOPED_ROUTES = 188

    # 200-219: exact in principle, beyond the kernel image's budget.
    BUDGET_CANDIDATES = 200  # more routes for one path than the matcher walks
    BUDGET_HEADER_NAMES = 201
    BUDGET_PREFIX_LENGTHS = 202
    BUDGET_STRING = 203
    BUDGET_PREDICATES = 204
    BUDGET_ENDPOINTS = 205
    BUDGET_IMAGE = 206
