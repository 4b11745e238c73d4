"""Captured Istio configuration and what a real Envoy did with it, for tests without a data path.

All of it when it lies beside the checkout, else the part that the tests carry with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY
from translator.request import Request
from xds_server.cache import ResourceCache, Snapshot
from xds_server.captures import FILES, read_response, response_file


def scenarios() -> Path:
    beside = REPOSITORY.parent / "shared" / "istio" / "scenarios"
    return beside if beside.is_dir() else REPOSITORY / "tests" / "data" / "scenarios"


def node_folders() -> list[Path]:
    """SCENARIO/NODE of every captured node that asks for listeners of its own (proxyless gRPC does not)."""
    return sorted(file.parent for file in scenarios().glob("*/*/lds.pb*") if (file.parent / "node.json").exists())


def load_snapshot(folder: Path) -> Snapshot:
    """What the cache makes of the four responses of one node."""
    cache = ResourceCache()
    for kind in FILES:
        file = response_file(folder, kind)
        if file is not None:
            result = cache.update(read_response(file))
            assert not result.rejected
    snapshot = cache.snapshot()
    assert snapshot is not None
    return snapshot


@dataclass(frozen=True, slots=True)
class OracleCase:
    """One request, and what Envoy did: one `result`, or how many times which `counts` ("status backend")."""

    node: Path
    label: str
    request: Request
    count: int
    result: dict[str, Any] | None
    counts: dict[str, int] | None


def oracle_cases() -> Iterator[OracleCase]:
    """All cases over HTTP/1.1 of one key."""
    for file in sorted(scenarios().glob("*/oracle*.json")):
        oracle = json.loads(file.read_text())
        for index, case in enumerate(oracle["cases"]):
            asked = case["request"]
            if asked.get("proto") is not None or "by_key" in case:
                continue
            headers = tuple((str(name), str(value)) for name, value in asked["headers"])
            address, port = asked["to"]
            request = Request(asked.get("method", "GET"), asked["host"], asked["path"], headers, (address, port))
            label = f"{file.parent.name}/{file.stem}/{index}"
            node = file.parent / oracle["node"]
            yield OracleCase(node, label, request, asked.get("count", 1), case.get("result"), case.get("counts"))
