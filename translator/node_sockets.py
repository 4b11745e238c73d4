"""Which transport sockets a stock Envoy on the node can open, and what stands in for those it cannot.

TLS settings of istiod's name secrets that each sidecar's own agent serves (SDS), or files of the workload.  Nobody
serves them to the node's Envoy: a cluster that waits for one is warming for ever, and with it everything behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from envoy.config.core.v3.base_pb2 import TransportSocket
from google.protobuf.message import Message

from translator.closed import Malformed, type_name, unhandled, unpack
from translator.node_scope import EnvoyOptions

_SOCKETS: Final = "envoy.extensions.transport_sockets."
_RAW_BUFFER: Final = _SOCKETS + "raw_buffer.v3.RawBuffer"
_TLS: Final = _SOCKETS + "tls.v3.UpstreamTlsContext"
_RAW_NAME: Final = "envoy.transport_sockets.raw_buffer"

# Sockets around another one.
_WRAPPERS: Final = (
    _SOCKETS + "proxy_protocol.v3.ProxyProtocolUpstreamTransport",
    _SOCKETS + "tcp_stats.v3.Config",
)

# The names under which a sidecar's agent serves the workload's own certificate and the mesh's roots.
_IDENTITY: Final = frozenset({"default", "ROOTCA"})
_SYSTEM_ROOTS: Final = "file-root:system"

_COMMON: Final = frozenset(
    {
        "tls_params",
        "tls_certificates",
        "tls_certificate_sds_secret_configs",
        "validation_context",
        "validation_context_sds_secret_config",
        "combined_validation_context",
        "alpn_protocols",
    }
)
_CERTIFICATE: Final = frozenset(
    {"certificate_chain", "private_key", "pkcs12", "password", "ocsp_staple", "signed_certificate_timestamp"}
)
_VALIDATION: Final = frozenset(
    {
        "trusted_ca",
        "crl",
        "system_root_certs",
        "verify_certificate_spki",
        "verify_certificate_hash",
        "match_typed_subject_alt_names",
        "match_subject_alt_names",
        "require_signed_certificate_timestamp",
        "allow_expired_certificate",
        "trust_chain_verification",
        "only_verify_leaf_cert_crl",
        "max_verify_depth",
    }
)
_SOURCES: Final = ("inline_string", "inline_bytes", None)


class Fate(Enum):
    OPEN = "open"  # Envoy can open it
    MESH_MTLS = "mesh mTLS"  # it needs the workload's identity
    CLOSED = "closed"  # it needs something else that is not here


@dataclass(frozen=True, slots=True)
class Socket:
    """What is known of a transport socket.

    `use` is what Envoy gets: of an OPEN one, itself or the same with the node's means; of a MESH_MTLS one, the same
    without the encryption, for those who want that; None for a CLOSED one.
    """

    fate: Fate
    use: Any
    why: str = ""


def raw_buffer() -> TransportSocket:
    made = TransportSocket(name=_RAW_NAME)
    made.typed_config.type_url = f"type.googleapis.com/{_RAW_BUFFER}"
    return made


def examine(socket: Any, options: EnvoyOptions) -> Socket:
    """Judge one `core.v3.TransportSocket`; it is not changed.

    :raises Malformed: if its settings cannot be parsed
    """
    kind = type_name(socket.typed_config)
    if kind == _RAW_BUFFER or (not kind and socket.name in ("", _RAW_NAME)):
        return Socket(Fate.OPEN, socket)
    if kind in _WRAPPERS:
        return _wrapped(socket, kind, options)
    if kind == _TLS and str(socket.typed_config.type_url).endswith("/" + _TLS):
        return _tls(socket, options)
    return Socket(Fate.CLOSED, None, f"transport socket {socket.name} ({kind or 'of no type'})")


def _wrapped(socket: Any, kind: str, options: EnvoyOptions) -> Socket:
    message: type[Message]
    if kind.endswith("ProxyProtocolUpstreamTransport"):
        from envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2 import (
            ProxyProtocolUpstreamTransport,
        )

        message = ProxyProtocolUpstreamTransport
    else:
        from envoy.extensions.transport_sockets.tcp_stats.v3.tcp_stats_pb2 import Config

        message = Config
    outer: Any = unpack(socket.typed_config, message, "transport_socket")
    inner = examine(outer.transport_socket, options)
    if inner.use is None or inner.use is outer.transport_socket:
        return Socket(inner.fate, socket if inner.use is not None else None, inner.why)
    outer.transport_socket.CopyFrom(inner.use)
    return Socket(inner.fate, _repacked(socket, outer), inner.why)


def _tls(socket: Any, options: EnvoyOptions) -> Socket:
    from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext

    context: Any = unpack(socket.typed_config, UpstreamTlsContext, "transport_socket")
    common = context.common_tls_context
    secrets = {str(secret.name) for secret in _secrets(common)}
    if secrets & _IDENTITY:
        return Socket(Fate.MESH_MTLS, raw_buffer(), "mesh mTLS")
    try:
        _check_local(common)
    except Malformed as error:
        return Socket(Fate.CLOSED, None, f"TLS: {error}")
    if secrets == {_SYSTEM_ROOTS} and options.system_ca and not common.tls_certificate_sds_secret_configs:
        _trust(common, options.system_ca)
        return Socket(Fate.OPEN, _repacked(socket, context))
    if secrets:
        return Socket(Fate.CLOSED, None, f"TLS: nobody serves the secret {', '.join(sorted(secrets))}")
    return Socket(Fate.OPEN, socket)


def _secrets(common: Any) -> Iterator[Any]:
    yield from common.tls_certificate_sds_secret_configs
    if common.HasField("validation_context_sds_secret_config"):
        yield common.validation_context_sds_secret_config
    if common.combined_validation_context.HasField("validation_context_sds_secret_config"):
        yield common.combined_validation_context.validation_context_sds_secret_config


def _check_local(common: Any) -> None:
    """:raises Malformed: if any part is in a file of the workload, or of a kind that is not known here"""
    _known(common, _COMMON)
    for certificate in common.tls_certificates:
        _known(certificate, _CERTIFICATE)
        for part, source in certificate.ListFields():
            for each in source if part.name == "signed_certificate_timestamp" else (source,):
                _inline(each, part.name)
    validation = (common.validation_context, common.combined_validation_context.default_validation_context)
    for context in validation:
        _known(context, _VALIDATION)
        for name in ("trusted_ca", "crl"):
            _inline(getattr(context, name), name)


def _known(message: Any, names: frozenset[str]) -> None:
    stranger = unhandled(message, names)
    if stranger:
        raise Malformed(stranger, "cannot be passed on to Envoy")


def _inline(source: Any, name: str) -> None:
    if source.WhichOneof("specifier") not in _SOURCES:
        raise Malformed(name, f"is in a file of the workload, {source.filename or source.WhichOneof('specifier')}")


def _trust(common: Any, authorities: str) -> None:
    """Validate with a file of this node instead of the secret that stands for the system's authorities."""
    from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext

    context = CertificateValidationContext()
    context.CopyFrom(common.combined_validation_context.default_validation_context)
    context.trusted_ca.filename = authorities
    common.validation_context.CopyFrom(context)  # of one oneof: the other ones are cleared


def _repacked(socket: Any, message: Message) -> TransportSocket:
    made = TransportSocket()
    made.CopyFrom(socket)
    made.typed_config.value = message.SerializeToString(deterministic=True)
    return made
