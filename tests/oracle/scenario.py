"""A scenario folder as data: cases and their recorded answers, the backends, the addresses.  No processes here.

The format (`oracle*.json`, `config/*.yaml`) is described in tests/data/scenarios/README.md.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import yaml

Headers = tuple[tuple[str, str], ...]

KEY_REQUESTS: Final = 3
"""Requests per key of a `by_key` case, as when it was recorded."""

_NO_BACKEND: Final = "-"


class ScenarioError(Exception):
    """A scenario that cannot be read; the text names the file and says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a case.  `to` is the address dialled; `tcp` sends bytes instead of HTTP."""

    to: tuple[str, int]
    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: Headers = ()
    tcp: bool = False

    def with_key(self, key: str) -> Request:
        """The request of a `by_key` case for one key."""
        return Request(
            self.to,
            self.method,
            self.host,
            self.path.replace("{key}", key),
            tuple((name, value.replace("{key}", key)) for name, value in self.headers),
            self.tcp,
        )

    def __str__(self) -> str:
        where = f"{self.to[0]}:{self.to[1]}"
        if self.tcp:
            return f"tcp {where}"
        headers = "".join(f" [{name}: {value}]" for name, value in self.headers)
        return f"{self.method} {self.host}{self.path}{headers} to {where}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the backend saw; header names in lower case, in order."""

    method: str
    path: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request.

    `status` 0: no response; `body` then says how it failed.  `served` is the backend that answered; None: nobody, it is
    Envoy's own answer, and only then `body` is its body.  `upstream` and `reached` are None where they were not
    recorded.  `reached` has one entry per attempt and mirror.
    """

    status: int
    served: str | None
    body: str
    response_headers: Headers
    elapsed_s: float
    upstream: Upstream | None = None
    reached: tuple[str, ...] | None = None

    @property
    def outcome(self) -> str:
        """As the keys of `counts` have it."""
        return f"{self.status} {self.served or _NO_BACKEND}"


@dataclass(frozen=True, slots=True)
class Case:
    """One case with what Envoy did: exactly one of `answer`, `counts` and `by_key` is set.

    `counts`: how often each outcome ("STATUS BACKEND", for TCP "BACKEND") came among `count` new connections.
    `by_key`: all outcomes of each key's requests.
    """

    number: int
    request: Request
    answer: Answer | None = None
    counts: Mapping[str, int] | None = None
    by_key: Mapping[str, frozenset[str]] | None = None

    @property
    def count(self) -> int:
        """Requests when it was recorded."""
        if self.counts is not None:
            return sum(self.counts.values())
        return 1 if self.by_key is None else KEY_REQUESTS * len(self.by_key)


@dataclass(frozen=True, slots=True)
class Backend:
    """One WorkloadEntry (or inline endpoint) and where it listens: (address, port) -> the name it answers with."""

    workload: str
    namespace: str
    labels: Mapping[str, str]
    service_account: str
    address: str
    names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Node:
    """The workload that was captured."""

    folder: Path
    workload: str
    namespace: str
    labels: Mapping[str, str]
    service_account: str
    address: str


@dataclass(frozen=True, slots=True)
class Oracle:
    """One oracle file with all that is needed to play it."""

    scenario: Path
    file: Path
    node: Node
    cases: tuple[Case, ...]
    backends: tuple[Backend, ...]

    @property
    def title(self) -> str:
        return f"{self.scenario.name} ({self.node.workload})"

    def virtual_addresses(self) -> frozenset[tuple[str, int]]:
        """Where the client dials and no backend listens: only a mesh that captures them makes them answer."""
        listening = {(backend.address, port) for backend in self.backends for port in backend.names}
        return frozenset({case.request.to for case in self.cases} - listening)

    def addresses(self) -> tuple[str, ...]:
        """Every address that is named and is not local by itself (127.0.0.0/8 is)."""
        named = {backend.address for backend in self.backends} | {case.request.to[0] for case in self.cases}
        return tuple(sorted(a for a in named if not ipaddress.ip_address(a).is_loopback))


def find_oracles(folder: Path, only: str | None = None) -> tuple[Path, ...]:
    """All oracle files below a folder of scenarios, or of one scenario.

    `only` names scenarios, with shell wildcards.  Raises ScenarioError when nothing is there.
    """
    if not folder.is_dir():
        raise ScenarioError(f"{folder} is not a folder")
    candidates = [folder] if any(folder.glob("oracle*.json")) else sorted(folder.iterdir())
    wanted = [path for path in candidates if only is None or fnmatchcase(path.name, only)]
    files = tuple(file for path in wanted for file in sorted(path.glob("oracle*.json")))
    if not files:
        raise ScenarioError(f"no oracle*.json in {folder}" + (f" for {only}" if only else ""))
    return files


def load_oracle(file: Path) -> Oracle:
    """Read an oracle file, its node and its backends.  Raises ScenarioError."""
    scenario = file.resolve().parent
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        node = _load_node(scenario / data["node"])
        cases = tuple(_case(number, item) for number, item in enumerate(data["cases"], 1))
        return Oracle(scenario, file, node, cases, load_backends(scenario / "config"))
    except OSError as error:
        raise ScenarioError(f"cannot read {error.filename}: {error.strerror}") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ScenarioError(f"{file}: {type(error).__name__}: {error}") from None


def _load_node(folder: Path) -> Node:
    metadata = json.loads((folder / "node.json").read_text(encoding="utf-8"))["metadata"]
    return Node(
        folder=folder,
        workload=metadata["WORKLOAD_NAME"],
        namespace=metadata["NAMESPACE"],
        labels=metadata.get("LABELS", {}),
        service_account=metadata.get("SERVICE_ACCOUNT", ""),
        address=metadata["INSTANCE_IPS"].split(",")[0],
    )


def _case(number: int, item: Mapping[str, Any]) -> Case:
    asked = item["request"]
    request = Request(
        to=(asked["to"][0], int(asked["to"][1])),
        method=asked.get("method", "GET"),
        host=asked.get("host", ""),
        path=asked.get("path", "/"),
        headers=_pairs(asked.get("headers", ())),
        tcp=asked.get("proto") == "tcp",
    )
    if "counts" in item:
        return Case(number, request, counts=item["counts"])
    if "by_key" in item:
        return Case(number, request, by_key={key: frozenset(outcomes) for key, outcomes in item["by_key"].items()})
    result = item["result"]
    return Case(
        number,
        request,
        Answer(
            status=result["status"],
            served=result["served"],
            body=result.get("body", ""),
            response_headers=_pairs(result["response_headers"]),
            elapsed_s=result["elapsed_s"],
            upstream=_upstream(result["upstream"]) if "upstream" in result else None,
            reached=tuple(result["backends_reached"]) if "backends_reached" in result else None,
        ),
    )


def _upstream(seen: Mapping[str, Any]) -> Upstream:
    # Some recordings have a header beside "headers" instead of in it.
    headers = {**seen["headers"], **{k: v for k, v in seen.items() if k not in ("method", "path", "headers")}}
    return Upstream(
        seen["method"], seen["path"], tuple((k.lower(), v) for k, values in headers.items() for v in values)
    )


def _pairs(items: Any) -> Headers:
    return tuple((str(name), str(value)) for name, value in items)


def load_backends(config: Path) -> tuple[Backend, ...]:
    """The backends of all ServiceEntries in a config folder.

    A WorkloadEntry listens on the target ports of every ServiceEntry that selects it.  It answers with its name, and
    with `NAME:PORT` when it listens on several ports.  Inline endpoints of a STATIC ServiceEntry are called
    `SERVICE-INDEX`.  Host names and Unix sockets have no backend.
    """
    documents = tuple(_documents(config))
    services = [d for d in documents if d.get("kind") == "ServiceEntry"]
    workloads = [d for d in documents if d.get("kind") == "WorkloadEntry"]
    found = [_selected(workload, services) for workload in workloads]
    found += [backend for service in services for backend in _inline(service)]
    return tuple(backend for backend in found if backend.names)


def _documents(config: Path) -> Iterator[Mapping[str, Any]]:
    if not config.is_dir():
        return
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in sorted(config.iterdir()):
        if file.name.endswith((".yaml", ".yaml.gz")):
            raw = file.read_bytes()
            for document in yaml.load_all(gzip.decompress(raw) if file.suffix == ".gz" else raw, Loader=loader):
                if isinstance(document, dict):
                    yield document


def _selected(workload: Mapping[str, Any], services: list[Mapping[str, Any]]) -> Backend:
    meta, spec = workload["metadata"], workload["spec"]
    labels: Mapping[str, str] = spec.get("labels", {})
    ports: set[int] = set()
    for service in services:
        wanted = service["spec"].get("workloadSelector", {}).get("labels", {})
        same_namespace = service["metadata"].get("namespace") == meta.get("namespace")
        if wanted and same_namespace and wanted.items() <= labels.items():
            ports |= _ports(service, spec.get("ports", {}))
    return Backend(
        workload=meta["name"],
        namespace=meta.get("namespace", "default"),
        labels=labels,
        service_account=spec.get("serviceAccount", ""),
        address=spec["address"],
        names=_names(meta["name"], ports),
    )


def _inline(service: Mapping[str, Any]) -> Iterator[Backend]:
    meta, spec = service["metadata"], service["spec"]
    if spec.get("resolution") != "STATIC":
        return
    for index, endpoint in enumerate(spec.get("endpoints", ())):
        if not _is_address(endpoint["address"]):
            continue
        name = f"{meta['name']}-{index}"
        yield Backend(
            workload=name,
            namespace=meta.get("namespace", "default"),
            labels=endpoint.get("labels", {}),
            service_account=endpoint.get("serviceAccount", ""),
            address=endpoint["address"],
            names=_names(name, _ports(service, endpoint.get("ports", {}))),
        )


def _ports(service: Mapping[str, Any], overrides: Mapping[str, int]) -> set[int]:
    return {
        int(overrides.get(port["name"], port.get("targetPort", port["number"]))) for port in service["spec"]["ports"]
    }


def _names(name: str, ports: set[int]) -> Mapping[int, str]:
    return {port: f"{name}:{port}" if len(ports) > 1 else name for port in sorted(ports)}


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
