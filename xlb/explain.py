"""`xlb explain`: what becomes of one request of a workload, by the reference evaluator.  Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from translator.evaluate import decide
from translator.model import ListenerKind, ViewRules
from translator.request import Request

_METHOD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ANY: Final = "0.0.0.0"


class ExplainError(Exception):
    """The question cannot be understood; one line that says what it should be."""


def request_of(rules: ViewRules, method: str, url: str, headers: Sequence[tuple[str, str]] = ()) -> Request:
    """The request a client makes of a URL.  Raises ExplainError.

    Host is that of the URL as curl sends it (without port 80), or the one in `headers`.
    """
    if not _METHOD.fullmatch(method):
        raise ExplainError(f"{method!r} is not an HTTP method")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise ExplainError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme != "http" or not host:
        raise ExplainError(f"{url!r}: give a URL such as http://reviews:9080/reviews/0 (TLS is opaque to the mesh)")
    named = [value for name, value in headers if name.lower() == "host"]
    rest = tuple((name, value) for name, value in headers if name.lower() != "host")
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == 80 else f"{shown}:{port}"
    # The target goes as it is written: its normalisation is part of what is explained.
    written = url.partition("://")[2].partition("#")[0]
    start = min((at for at in (written.find("/"), written.find("?")) if at >= 0), default=len(written))
    target = written[start:] or "/"
    if target.startswith("?"):
        target = f"/{target}"
    return Request(
        method=method,
        host=_bytes(named[0] if named else authority),
        path=_bytes(target),
        headers=tuple((_bytes(name), _bytes(value)) for name, value in rest),
        to=(destination(rules, host, port), port),
    )


def explain(rules: ViewRules, request: Request) -> dict[str, Any]:
    """`Decision.as_json`, and beside it `to`, `clusters` with weights where the route has several, no off-switches."""
    decision = decide(rules, request)
    told: dict[str, Any] = dict(decision.as_json())
    told["to"] = f"[{request.to[0]}]:{request.to[1]}" if ":" in request.to[0] else f"{request.to[0]}:{request.to[1]}"
    told["host"] = request.host
    told["clusters"] = []
    # Off-switches are not of the configuration: who asks the agent is told what they change.
    told["bypass"] = told["annotation"] = None
    if decision.route_index is not None and decision.action == "forward":
        for route in _routes(rules, decision.listener):
            if route.index == decision.route_index:
                told["clusters"] = [{"cluster": c.cluster, "weight": c.weight} for c in route.action.clusters]
    return told


def destination(rules: ViewRules, host: str, port: int) -> str:
    """The address a client that dials a host would dial, as far as the configuration tells.

    :returns: the host if it is an address; its virtual address; or the wildcard, where listeners take any address
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    for address in _addresses(rules, host.lower().rstrip("."), port):
        return address
    return _ANY


def _addresses(rules: ViewRules, host: str, port: int) -> Iterator[str]:
    """Addresses that the configuration has for a name: istiod lists a service's among its domains."""
    names = {host, f"{host}:{port}"}
    for config in rules.route_configs.values():
        for virtual_host in config.virtual_hosts:
            if names.isdisjoint(virtual_host.domains):
                continue
            for domain in virtual_host.domains:
                address = _as_address(domain)
                if address is not None:
                    yield address
    for rule in rules.listeners:
        # outbound|PORT|SUBSET|HOST
        parts = (rule.cluster or "").split("|")
        if rule.port == port and rule.kind is ListenerKind.ENVOY and len(parts) == 4:
            service = parts[3]
            if (service == host or service.startswith(f"{host}.")) and rule.address not in (_ANY, "::"):
                yield rule.address


def _as_address(domain: str) -> str | None:
    text = domain[1:].partition("]")[0] if domain.startswith("[") else domain
    for candidate in (text, text.rpartition(":")[0]):
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return None


def _routes(rules: ViewRules, listener: str | None) -> Iterator[Any]:
    names = {rule.route_config for rule in rules.listeners if rule.name == listener}
    for name in names:
        config = rules.route_configs.get(name) if name is not None else None
        for virtual_host in config.virtual_hosts if config is not None else ():
            yield from virtual_host.routes


def _bytes(text: str) -> str:
    """Text as its UTF-8 bytes, one character each, as `Request` has them."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
