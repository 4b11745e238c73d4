"""Parse and check one resource: what comes out can be relied on, what does not is rejected with field and reason.

Beyond the constraints of the .proto files this holds what Envoy checks in code and would refuse a resource for
(`source/common/router/config_impl.cc`, `source/common/upstream/eds.cc`, `source/common/listener_manager`).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from xds_server.constraints import Constraints
from xds_server.resources import MESSAGES, TypeUrl, connection_managers, endpoint_name, name_of, route_names

MAX_RESOURCE_BYTES: Final = 32 << 20
_MAX_WEIGHT_SUM: Final = 2**32 - 1


class InvalidResourceError(Exception):
    """A resource that cannot be taken; `field` is a path inside it, "" for the resource as a whole."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}" if field else why)
        self.field = field
        self.why = why


@dataclass(frozen=True, slots=True)
class Parsed:
    """A checked resource and the names (of EDS for a cluster, of RDS for a listener) that it makes us ask for."""

    name: str
    message: Message
    references: tuple[str, ...]


class Validator:
    """Parses and checks resources; keeps only the compiled constraints between calls."""

    def __init__(self, max_bytes: int = MAX_RESOURCE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._constraints = Constraints()

    def parse(self, type_url: TypeUrl, value: bytes) -> Parsed:
        """Parse one serialised resource.

        :raises InvalidResourceError: with the first thing that is wrong
        """
        if len(value) > self._max_bytes:
            raise InvalidResourceError("", f"is {len(value)} bytes long, more than {self._max_bytes}")
        kind = MESSAGES[type_url]
        try:
            message = kind.FromString(value)
        except DecodeError as error:
            raise InvalidResourceError("", f"is not a valid {kind.DESCRIPTOR.name} message ({error})") from None
        name = name_of(type_url, message)
        if not name:
            raise InvalidResourceError("cluster_name" if type_url is TypeUrl.ENDPOINT else "name", "is empty")
        self._check_constraints(message, "")
        return Parsed(name, message, self._check(type_url, message))

    def _check(self, type_url: TypeUrl, message: Any) -> tuple[str, ...]:
        if type_url is TypeUrl.CLUSTER:
            return _check_cluster(message)
        if type_url is TypeUrl.ENDPOINT:
            _check_endpoints(message)
        elif type_url is TypeUrl.ROUTE:
            _check_routes(message, "")
        else:
            return self._check_listener(message)
        return ()

    def _check_listener(self, listener: Any) -> tuple[str, ...]:
        if not any(listener.HasField(name) for name in ("address", "api_listener", "internal_listener")):
            raise InvalidResourceError("address", "is required")
        try:
            managers = connection_managers(listener)
        except ValueError as error:
            field, _, why = str(error).partition(": ")
            raise InvalidResourceError(field, why) from None
        for path, manager in managers:
            # What proxyless gRPC gets has no stat_prefix, and gRPC does not check constraints.
            if not path.startswith("api_listener"):
                self._check_constraints(manager, path)
            if manager.HasField("route_config"):
                _check_routes(manager.route_config, f"{path}.route_config.")
            if manager.HasField("rds") and not manager.rds.route_config_name:
                raise InvalidResourceError(f"{path}.rds.route_config_name", "is empty")
        return route_names(managers)

    def _check_constraints(self, message: Message, path: str) -> None:
        violation = self._constraints.first_violation(message)
        if violation:
            field, why = violation
            raise InvalidResourceError(f"{path}.{field}" if path else field, why)


def _check_cluster(cluster: Any) -> tuple[str, ...]:
    is_eds = cluster.WhichOneof("cluster_discovery_type") == "type" and cluster.type == type(cluster).EDS
    if is_eds and not cluster.eds_cluster_config.HasField("eds_config"):
        raise InvalidResourceError("eds_cluster_config.eds_config", "is required for a cluster of type EDS")
    name = endpoint_name(cluster)
    return () if name is None else (name,)


def _check_endpoints(assignment: Any) -> None:
    for i, group in enumerate(assignment.endpoints):
        for j, candidate in enumerate(group.lb_endpoints):
            if candidate.WhichOneof("host_identifier") != "endpoint":
                continue
            address = candidate.endpoint.address
            if address.WhichOneof("address") != "socket_address" or address.socket_address.resolver_name:
                continue
            if not _is_ip(address.socket_address.address):
                path = f"endpoints[{i}].lb_endpoints[{j}].endpoint.address.socket_address.address"
                raise InvalidResourceError(path, f"{address.socket_address.address!r} is not an IP address")


def _is_ip(text: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def _check_routes(config: Any, path: str) -> None:
    owners: dict[str, int] = {}
    for i, host in enumerate(config.virtual_hosts):
        for j, domain in enumerate(host.domains):
            # Envoy compares domains in lower case and refuses the whole configuration for one met twice.
            if domain.lower() in owners:
                other = config.virtual_hosts[owners[domain.lower()]].name
                where = f"{path}virtual_hosts[{i}].domains[{j}]"
                raise InvalidResourceError(
                    where, f"{domain!r} of virtual host {host.name!r} is also a domain of {other!r}"
                )
            owners[domain.lower()] = i
        for j, route in enumerate(host.routes):
            if route.WhichOneof("action") == "route":
                _check_weights(route.route, f"{path}virtual_hosts[{i}].routes[{j}].route.weighted_clusters")


def _check_weights(action: Any, path: str) -> None:
    if action.WhichOneof("cluster_specifier") != "weighted_clusters":
        return
    total = sum(item.weight.value for item in action.weighted_clusters.clusters)
    if not 0 < total <= _MAX_WEIGHT_SUM:
        raise InvalidResourceError(path, f"the sum of weights is {total}, must be between 1 and {_MAX_WEIGHT_SUM}")
