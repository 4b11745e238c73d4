"""One view's resources on their way to the node Envoy: what is renamed, left out, replaced or refused, and told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import FilterConfig
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.access_loggers.grpc.v3.als_pb2 import HttpGrpcAccessLogConfig
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.lua.v3.lua_pb2 import Lua
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from google.protobuf import text_format
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

from tests.unit.captured import load_snapshot, node_folders, scenarios
from tests.unit.node_builders import ADDRESS, get, made, outbound, snapshot, told
from tests.unit.xds_builders import CDS, LDS, RDS, routes, static_cluster
from translator.envoy import (
    NodeResources,
    listener_names,
    merge,
    node_resources,
    split_name,
)
from xds_server.cache import Snapshot, inconsistencies
from xds_server.resources import TypeUrl, connection_managers, name_of

# -- captured configuration --------------------------------------------------------------------------------------------


def every_name(resources: NodeResources) -> Iterator[str]:
    """Names and references, found in another way than by the code under test: by the text of all messages."""
    for kind, messages in resources.resources.items():
        for name, message in messages.items():
            yield name
            assert name_of(TypeUrl(kind), message) == name
            yield from _references(message)


def _references(message: Any) -> Iterator[str]:
    """Values of fields that hold names of clusters and route configurations, packed messages opened."""
    if isinstance(message, PackedAny):
        for kind in (HttpConnectionManager, TcpProxy):
            if message.Is(kind.DESCRIPTOR):
                yield from _references(kind.FromString(message.value))
        return
    for field, value in message.ListFields():
        if field.name in (
            "cluster",
            "cluster_name",
            "service_name",
            "route_config_name",
            "stat_prefix",
            "alt_stat_name",
        ):
            yield value
        elif field.name == "clusters" and message.DESCRIPTOR.name == "WeightedCluster":
            yield from (choice.name for choice in value)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            pass
        elif field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                yield from _references(child)


@pytest.mark.parametrize("folder", node_folders(), ids=lambda folder: "/".join(folder.parts[-2:]))
def test_captured_configuration_is_closed_and_carries_its_view(folder: Any) -> None:
    view = load_snapshot(folder)
    before = {
        kind: {n: m.SerializeToString(deterministic=True) for n, m in view.by_type(kind).items()} for kind in TypeUrl
    }
    result = made(view)
    names = [*every_name(result)]
    assert all(name.startswith("v~") for name in names if name), [n for n in names if n and not n.startswith("v~")]
    served = Snapshot("1", *(result.resources[kind] for kind in TypeUrl))
    assert [*inconsistencies(served)] == []
    assert before == {
        kind: {n: m.SerializeToString(deterministic=True) for n, m in view.by_type(kind).items()} for kind in TypeUrl
    }, "what was received is not changed"


def plain(message: Message) -> str:
    """A message as text, packed ones opened, names without their view."""
    return text_format.MessageToString(message).replace("v~", "")


def proxies(found: Any) -> list[str]:
    """All TCP proxies of a listener, in order, but for their access logs."""
    chains = [*found.filter_chains, found.default_filter_chain]
    packed = [f.typed_config for chain in chains for f in chain.filters if f.typed_config.Is(TcpProxy.DESCRIPTOR)]
    found = [TcpProxy.FromString(config.value) for config in packed]
    for proxy in found:
        proxy.ClearField("access_log")
    return [plain(proxy) for proxy in found]


@pytest.mark.parametrize("folder", node_folders(), ids=lambda folder: "/".join(folder.parts[-2:]))
def test_captured_routes_and_proxies_differ_by_the_view_only(folder: Any) -> None:
    view = load_snapshot(folder)
    result = made(view)
    for name, config in view.routes.items():
        assert plain(get(result, RDS, f"v~{name}")) == plain(config)
    for name, received in view.listeners.items():
        if f"v~{name}" in result.resources[LDS]:
            assert proxies(get(result, LDS, f"v~{name}")) == proxies(received)


@pytest.mark.parametrize("folder", node_folders(), ids=lambda folder: "/".join(folder.parts[-2:]))
def test_nothing_of_captured_configuration_vanishes_silently(folder: Any) -> None:
    view = load_snapshot(folder)
    result = made(view)
    mentioned = {r.partition(" (")[0] for change in result.changes for r in change.resources}
    mentioned |= {rejected.name for rejected in result.rejected}
    for kind in (CDS, LDS, RDS):
        kept = {split_name(name)[1] for name in result.resources[kind]}
        assert view.by_type(kind).keys() - kept <= mentioned


def test_bookinfo_has_nothing_to_complain_of() -> None:
    view = load_snapshot(scenarios() / "bookinfo-all-v1" / "productpage-v1")
    result = made(view)
    assert [change for change in result.changes if not change.harmless] == []
    assert result.rejected == ()
    assert list(result.resources[LDS]) == ["v~0.0.0.0_9080"]
    assert "v~PassthroughCluster" in result.resources[CDS]
    assert not any("inbound|" in name for name in result.resources[CDS])


def test_a_sidecars_listener_becomes_a_bound_one_that_asks_for_the_original_destination_first() -> None:
    view = load_snapshot(scenarios() / "bookinfo-all-v1" / "productpage-v1")
    result = node_resources("v", view, {"0.0.0.0_9080": 20001}, "127.0.0.5")
    bound = get(result, LDS, "v~0.0.0.0_9080")
    assert (bound.address.socket_address.address, bound.address.socket_address.port_value) == ("127.0.0.5", 20001)
    assert bound.bind_to_port.value
    assert not bound.HasField("use_original_dst")
    assert [f.name for f in bound.listener_filters] == [
        "envoy.filters.listener.original_dst",
        "envoy.filters.listener.http_inspector",
    ]
    ((_, manager),) = connection_managers(bound)
    assert manager.rds.route_config_name == "v~9080"
    assert [f.name for f in manager.http_filters] == [
        "envoy.filters.http.grpc_stats",
        "envoy.filters.http.fault",
        "envoy.filters.http.cors",
        "envoy.filters.http.router",
    ]
    assert [f.disabled for f in manager.http_filters] == [True, True, True, False]  # till a route asks for them
    (proxy,) = bound.default_filter_chain.filters
    assert TcpProxy.FromString(proxy.typed_config.value).cluster == "v~PassthroughCluster"


def test_the_catch_all_is_served_where_it_stops_what_is_not_registered() -> None:
    view = load_snapshot(scenarios() / "bookinfo-registry-only" / "productpage-v1")
    assert listener_names(view) == ("0.0.0.0_9080", "virtualOutbound")
    catch_all = get(made(view), LDS, "v~virtualOutbound")
    assert not catch_all.HasField("use_original_dst")
    assert [f.name for f in catch_all.listener_filters] == ["envoy.filters.listener.original_dst"]
    assert [c.filter_chain_match.destination_port.value for c in catch_all.filter_chains] == [15001, 0]


def test_a_listener_bound_to_a_port_has_no_original_destination() -> None:
    view = load_snapshot(scenarios() / "bookinfo-interception-none" / "productpage-v1")
    (bound,) = made(view).resources[LDS].values()
    assert [f.name for f in bound.listener_filters] == []  # type: ignore[attr-defined]  # a Listener


def test_listeners_without_a_port_are_left_out_and_told() -> None:
    view = load_snapshot(scenarios() / "bookinfo-registry-only" / "productpage-v1")
    result = node_resources("v", view, {"0.0.0.0_9080": 1}, ADDRESS)
    assert list(result.resources[LDS]) == ["v~0.0.0.0_9080"]
    assert told(result, "no port") == ["virtualOutbound"]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["", "a~b", "~"])
def test_a_view_whose_name_could_be_mistaken_is_refused(view: str) -> None:
    with pytest.raises(ValueError, match="view"):
        node_resources(view, snapshot(), {}, ADDRESS)


def test_names_can_be_taken_apart() -> None:
    assert split_name("v~outbound|80||x~y") == ("v", "outbound|80||x~y")
    with pytest.raises(ValueError, match="carries no view"):
        split_name("xlb-ads")


def test_two_listeners_with_one_port_are_refused() -> None:
    with pytest.raises(ValueError, match="same port"):
        node_resources("v", snapshot(), {"a": 1, "b": 1}, ADDRESS)


def test_two_views_have_everything_twice() -> None:
    view = load_snapshot(scenarios() / "bookinfo-all-v1" / "productpage-v1")
    one, two = made(view, view="one"), made(view, view="two", first=21000)
    both = merge([one, two])
    for kind in TypeUrl:
        assert both.resources[kind].keys() == one.resources[kind].keys() | two.resources[kind].keys()
        assert len(both.resources[kind]) == 2 * len(one.resources[kind])
    assert both.changes == one.changes + two.changes
    with pytest.raises(ValueError, match="comes twice"):
        merge([one, one])
    with pytest.raises(ValueError, match="same address"):
        merge([one, made(view, view="two")])
    assert merge([]).resources == {kind: {} for kind in TypeUrl}


# -- routes ------------------------------------------------------------------------------------------------------------


def test_every_cluster_a_route_names_gets_the_view() -> None:
    config = routes("r", "plain")
    config.request_mirror_policies.add(cluster="m0")
    host = config.virtual_hosts[0]
    host.request_mirror_policies.add(cluster="m1")
    weighted = host.routes.add(name="weighted").route
    weighted.weighted_clusters.clusters.add(name="w1")
    weighted.weighted_clusters.clusters.add(name="w2")
    weighted.request_mirror_policies.add(cluster="m2")
    result = made(snapshot(configs=(config,)))
    got = get(result, RDS, "v~r")
    assert got.virtual_hosts[0].routes[0].route.cluster == "v~plain"
    assert [c.name for c in got.virtual_hosts[0].routes[1].route.weighted_clusters.clusters] == ["v~w1", "v~w2"]
    mirrors = (got, got.virtual_hosts[0], got.virtual_hosts[0].routes[1].route)
    assert [m.request_mirror_policies[0].cluster for m in mirrors] == ["v~m0", "v~m1", "v~m2"]
    assert got.virtual_hosts[0].name == "plain"
    assert got.virtual_hosts[0].routes[1].name == "weighted"


def test_what_a_route_leaves_to_the_request_or_the_connection_is_told() -> None:
    config = routes("r", "c")
    (host,) = config.virtual_hosts
    host.routes.add(name="by-header").route.cluster_header = "x-cluster"
    hashed = host.routes.add(name="hashed").route
    hashed.cluster = "c"
    hashed.hash_policy.add().connection_properties.source_ip = True
    shown = host.routes[0].response_headers_to_add.add()
    shown.header.key, shown.header.value = "x-by", "%UPSTREAM_CLUSTER%"
    result = made(snapshot(configs=(config,)))
    assert told(result, "from a header") == ["r (virtual_hosts[c] route by-header)"]
    assert told(result, "source address") == ["r (virtual_hosts[c] route hashed)"]
    assert told(result, "shows the cluster's name") == ["r (x-by)"]


@pytest.mark.parametrize("field", ["vhds", "cluster_specifier_plugins", "matcher", "cluster_specifier_plugin"])
def test_routes_that_choose_by_other_means_are_refused_with_the_listeners_that_need_them(field: str) -> None:
    config = routes("r", "c")
    if field == "vhds":
        config.vhds.config_source.ads.SetInParent()
    elif field == "cluster_specifier_plugins":
        config.cluster_specifier_plugins.add()
    elif field == "matcher":
        config.virtual_hosts[0].matcher.SetInParent()
    else:
        config.virtual_hosts[0].routes[0].route.cluster_specifier_plugin = "p"
    result = made(
        snapshot(listeners=(outbound("l", "r"), outbound("other", "fine")), configs=(config, routes("fine", "c")))
    )
    assert list(result.resources[RDS]) == ["v~fine"]
    assert list(result.resources[LDS]) == ["v~other"]
    assert [(r.type_url, r.name) for r in result.rejected] == [(RDS, "r"), (LDS, "l")]
    assert field in result.rejected[0].field


def test_settings_for_filters_are_not_touched_unless_they_name_a_cluster() -> None:
    config = routes("r", "c")
    configs = config.virtual_hosts[0].routes[0].typed_per_filter_config
    fault = HTTPFault()
    fault.abort.http_status = 500
    configs["fault"].Pack(fault)
    wrapped = FilterConfig(disabled=True)
    wrapped.config.Pack(HTTPFault(upstream_cluster="only"))
    configs["wrapped"].Pack(wrapped)
    configs["istio.stats"].type_url = "type.googleapis.com/stats.PluginConfig"
    result = made(snapshot(configs=(config,)))
    got = get(result, RDS, "v~r").virtual_hosts[0].routes[0].typed_per_filter_config
    assert set(got) == {"fault", "wrapped"}
    assert got["fault"] == configs["fault"]
    inner = FilterConfig.FromString(got["wrapped"].value)
    assert inner.disabled
    assert HTTPFault.FromString(inner.config.value).upstream_cluster == "v~only"
    assert any("istio.stats" in change.what and change.harmless for change in result.changes)


def test_settings_for_an_unknown_filter_are_refused() -> None:
    config = routes("r", "c")
    config.virtual_hosts[0].typed_per_filter_config["guard"].type_url = "type.googleapis.com/acme.Guard"
    (rejected,) = made(snapshot(configs=(config,))).rejected
    assert (rejected.type_url, rejected.name) == (RDS, "r")
    assert "acme.Guard" in rejected.why


# -- listeners ---------------------------------------------------------------------------------------------------------


def managed(change: Any) -> Listener:
    """A listener whose connection manager has been changed."""
    found = outbound("l", "r")
    packed = found.filter_chains[0].filters[0].typed_config
    manager = HttpConnectionManager.FromString(packed.value)
    change(manager)
    packed.Pack(manager)
    return found


def with_manager(change: Any, *more: Cluster) -> NodeResources:
    return made(snapshot(listeners=(managed(change),), configs=(routes("r", "c"),), clusters=more))


def http_filter(message: Message, **fields: Any) -> Any:
    def change(manager: Any) -> None:
        manager.http_filters.add(name="f", **fields).typed_config.Pack(message)

    return change


def test_a_filter_that_is_not_known_refuses_the_listener() -> None:
    result = with_manager(http_filter(Lua()))
    assert dict(result.resources[LDS]) == {}
    (rejected,) = result.rejected
    assert rejected.name == "l"
    assert rejected.field == "filter_chains[0].filters[0].typed_config.http_filters[0]"
    assert "lua" in rejected.why


def test_an_optional_filter_that_is_not_known_is_left_out_and_told() -> None:
    result = with_manager(http_filter(Lua(), is_optional=True))
    ((_, manager),) = connection_managers(get(result, LDS, "v~l"))
    assert list(manager.http_filters) == []
    assert told(result, "optional filter f") == ["l"]


def test_a_filter_that_would_be_discovered_is_refused() -> None:
    def change(manager: Any) -> None:
        manager.http_filters.add(name="wasm").config_discovery.SetInParent()

    (rejected,) = with_manager(change).rejected
    assert "discovery" in rejected.why


def test_inline_routes_get_the_view_too() -> None:
    def change(manager: Any) -> None:
        manager.route_config.CopyFrom(routes("inline", "c"))

    ((_, manager),) = connection_managers(get(with_manager(change), LDS, "v~l"))
    assert manager.route_config.name == "v~inline"
    assert manager.route_config.virtual_hosts[0].routes[0].route.cluster == "v~c"


def test_access_logs_go_to_clusters_of_the_view_or_nowhere() -> None:
    def change(manager: Any) -> None:
        manager.access_log.add(name="file").typed_config.Pack(FileAccessLog(path="/dev/stdout"))
        for target in ("als", "missing"):
            remote = HttpGrpcAccessLogConfig()
            remote.common_config.log_name = "x"
            remote.common_config.grpc_service.envoy_grpc.cluster_name = target
            manager.access_log.add(name="remote").typed_config.Pack(remote)

    result = with_manager(change, static_cluster("als"))
    ((_, manager),) = connection_managers(get(result, LDS, "v~l"))
    (log,) = manager.access_log
    config = HttpGrpcAccessLogConfig.FromString(log.typed_config.value).common_config
    assert config.grpc_service.envoy_grpc.cluster_name == "v~als"
    assert told(result, "without its access log (FileAccessLog)") == ["l"]
    assert told(result, "no cluster 'missing'") == ["l"]


def test_a_tracing_provider_that_cannot_be_reached_is_left_out() -> None:
    def change(manager: Any) -> None:
        manager.tracing.provider.name = "acme"
        manager.tracing.provider.typed_config.type_url = "type.googleapis.com/acme.Tracer"

    result = with_manager(change)
    ((_, manager),) = connection_managers(get(result, LDS, "v~l"))
    assert not manager.HasField("tracing")
    assert told(result, "tracing provider (Tracer)") == ["l"]


def test_a_tcp_proxys_clusters_get_the_view() -> None:
    found = outbound("l")
    proxy = TcpProxy(stat_prefix="s")
    proxy.weighted_clusters.clusters.add(name="a", weight=1)
    proxy.weighted_clusters.clusters.add(name="b", weight=2)
    proxy.hash_policy.add().source_ip.SetInParent()
    found.filter_chains.add().filters.add(name="tcp").typed_config.Pack(proxy)
    result = made(snapshot(listeners=(found,)))
    got = TcpProxy.FromString(get(result, LDS, "v~l").filter_chains[0].filters[0].typed_config.value)
    assert [c.name for c in got.weighted_clusters.clusters] == ["v~a", "v~b"]
    assert got.stat_prefix == "v~s"
    assert told(result, "source address") == ["l"]


def test_a_listener_whose_routes_never_came_is_refused_since_envoy_would_wait() -> None:
    (rejected,) = made(snapshot(listeners=(outbound("l", "r"),))).rejected
    assert (rejected.name, rejected.field) == ("l", "rds")
