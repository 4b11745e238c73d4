"""Folders of captured DiscoveryResponses: reading them, and finding the one for a node.

SCENARIO/NODE/node.json                      the node that was captured
SCENARIO/NODE/{cds,eds,lds,rds}.pb[.gz]      one serialised DiscoveryResponse each
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from xds_server.node import Identity, identity
from xds_server.resources import MESSAGES, TypeUrl, name_of, wire_name
from xds_server.stream import Packed

FILES: Final[Mapping[str, TypeUrl]] = {
    "cds": TypeUrl.CLUSTER,
    "eds": TypeUrl.ENDPOINT,
    "lds": TypeUrl.LISTENER,
    "rds": TypeUrl.ROUTE,
}
_MAX_BYTES: Final = 512 << 20


class CaptureError(Exception):
    """A folder that cannot be served; the text names the file and says why."""


class Fit(Enum):
    """How a captured folder was chosen for a node."""

    EXACT = "exact"  # its WORKLOAD_NAME is the node's
    SAME_APP = "same-app"  # its label `app` is
    NONE = "none"  # there is none: the node gets no clusters and no listeners


@dataclass(frozen=True, slots=True)
class CapturedNode:
    """One captured folder."""

    folder: str
    identity: Identity
    resources: Mapping[TypeUrl, Mapping[str, Packed]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """All captured folders of one scenario."""

    path: Path
    nodes: tuple[CapturedNode, ...] = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.name

    def find(self, node: Node) -> tuple[Fit, CapturedNode | None]:
        """The folder for a node: same WORKLOAD_NAME, else same `app` label.

        Only folders of the same kind count (proxyless gRPC and gateways have configuration of another shape); among
        several, one of the same namespace is preferred, then the one named like the workload, then the first by name.
        """
        who = identity(node)
        same_kind = [
            n
            for n in self.nodes
            if n.identity.generator == who.generator and (not who.kind or n.identity.kind == who.kind)
        ]
        same_kind.sort(key=lambda n: (n.identity.namespace != who.namespace, n.folder != who.workload, n.folder))
        for candidate in same_kind:
            if who.workload and candidate.identity.workload == who.workload:
                return Fit.EXACT, candidate
        for candidate in same_kind:
            if who.app and candidate.identity.app == who.app:
                return Fit.SAME_APP, candidate
        return Fit.NONE, None


def load_scenario(path: Path) -> Scenario:
    """Read a scenario folder; a single NODE folder is taken as a scenario of one node.

    :raises CaptureError: if there is no captured node in it, or a file cannot be read
    """
    path = path.resolve()
    if not path.is_dir():
        raise CaptureError(f"{path} is not a folder")
    try:
        folders = [path] if _is_node(path) else sorted(p for p in path.iterdir() if p.is_dir() and _is_node(p))
        if not folders:
            raise CaptureError(f"{path} holds no captured node: no NODE/node.json beside NODE/cds.pb")
        return Scenario(path, tuple(_load_node(folder) for folder in folders))
    except OSError as error:
        raise CaptureError(f"cannot read {error.filename}: {error.strerror}") from None


def read_response(path: Path) -> DiscoveryResponse:
    """Read one captured response, gzipped if its name ends in .gz.

    :raises CaptureError: if it is not one
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = _gunzip(raw)
        return DiscoveryResponse.FromString(raw)
    except (DecodeError, EOFError, gzip.BadGzipFile, zlib.error, ValueError) as error:
        raise CaptureError(f"{path} is not a captured DiscoveryResponse: {error}") from None


def read_node(path: Path) -> Node:
    """Read a node.json.

    :raises CaptureError: if it is not one
    """
    try:
        return json_format.Parse(path.read_text(encoding="utf-8"), Node(), ignore_unknown_fields=True)
    except (json_format.ParseError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path} is not a node: {error}") from None


def response_file(folder: Path, kind: str) -> Path | None:
    """The file of a kind ("cds" ...) in a NODE folder; None if it was not captured."""
    candidates = (folder / f"{kind}.pb", folder / f"{kind}.pb.gz")
    return next((path for path in candidates if path.is_file()), None)


def _is_node(folder: Path) -> bool:
    return (folder / "node.json").is_file() and response_file(folder, "cds") is not None


def _load_node(folder: Path) -> CapturedNode:
    resources: dict[TypeUrl, Mapping[str, Packed]] = {}
    for kind, type_url in FILES.items():
        file = response_file(folder, kind)
        resources[type_url] = {} if file is None else _pack_all(file, type_url)
    return CapturedNode(folder.name, identity(read_node(folder / "node.json")), resources)


def _pack_all(file: Path, type_url: TypeUrl) -> Mapping[str, Packed]:
    packed: dict[str, Packed] = {}
    for index, resource in enumerate(read_response(file).resources):
        if resource.type_url != type_url:
            raise CaptureError(f"{file}: resource {index} is a {resource.type_url!r}, not a {type_url!r}")
        try:
            name = wire_name(resource.value)
            if name is None:
                name = name_of(type_url, MESSAGES[type_url].FromString(resource.value))
            packed[name] = Packed.of(type_url, resource.value)
        except (DecodeError, ValueError) as error:
            raise CaptureError(f"{file}: resource {index} cannot be parsed: {error}") from None
    return packed


def _gunzip(raw: bytes) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    data = unzip.decompress(raw, _MAX_BYTES)
    if not unzip.eof:
        raise ValueError("the gzip stream is cut short or too large")
    return data
