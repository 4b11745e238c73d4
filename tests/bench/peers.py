"""What XLB is compared with: an nginx backend, one node Envoy, and a pair of sidecars.

The Envoys get the least that forwards HTTP (router filter only, no access log, no telemetry, no mTLS), so the
comparison favours them over the sidecars of a real mesh.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters."

BODY: Final = "x" * 73 + "\n"


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


# The backend inside the mesh is the address that the captured configuration has for details-v1; its twin with the
# same configuration is in no cgroup of XLB's, so that "no mesh" means none.
MESHED_BACKEND: Final = Address("127.1.2.1", 9080)
PLAIN_BACKEND: Final = Address("127.1.250.1", 9080)
VIP: Final = Address("127.2.0.2", 9080)
NODE_ENVOY: Final = Address("127.1.250.2", 9081)
SIDECAR_CLIENT: Final = Address("127.1.250.3", 15001)
SIDECAR_SERVER: Final = Address("127.1.250.4", 15006)


def write_nginx(directory: Path, name: str, listen: Address, workers: int = 1) -> list[str]:
    """Write the configuration of one nginx; return the command that runs it in the foreground.

    `keepalive_requests` is out of reach: nginx would otherwise close every connection after 1,000 requests.
    """
    home = directory / name
    home.mkdir()
    (home / "nginx.conf").write_text(
        f"""\
daemon off;
worker_processes {workers};
pid {home}/nginx.pid;
error_log {home}/error.log warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen {listen} backlog=65535;
        location / {{ return 200 "{BODY.strip()}\\n"; }}
    }}
}}
"""
    )
    return ["nginx", "-e", f"{home}/error.log", "-p", str(home), "-c", str(home / "nginx.conf")]


def write_envoy(directory: Path, name: str, listen: Address, upstream: Address, binary: Path) -> list[str]:
    """Write a static configuration that forwards all of `listen` to `upstream`; return the command that runs it."""
    path = directory / f"{name}.json"
    path.write_text(json.dumps(envoy_config(name, listen, upstream)))
    return [
        str(binary),
        "-c",
        str(path),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]


def envoy_config(name: str, listen: Address, upstream: Address) -> dict[str, Any]:
    """The bootstrap.  Path normalisation and merged header checks are as istiod sets them."""
    manager = {
        "@type": _TYPE + "network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "normalize_path": True,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "http.router.v3.Router"},
            }
        ],
    }
    return {
        "node": {"id": name, "cluster": name},
        "static_resources": {
            "listeners": [
                {
                    "name": "all",
                    "address": _socket_address(listen),
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "upstream",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "load_assignment": {
                        "cluster_name": "upstream",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket_address(upstream)}}]}],
                    },
                }
            ],
        },
    }


def _socket_address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}
