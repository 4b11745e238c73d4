"""Every captured configuration: translated without a loss, and the same in the image as in the evaluator."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.captured import load_snapshot, node_folders
from tests.unit.image_reader import ImageReader
from tests.unit.rule_strategies import requests
from tests.unit.test_image import ROOMY, Ids
from translator import image
from translator.evaluate import decide, kernel_route
from translator.from_xds import translate
from translator.image import Layouts
from translator.kernel_view import KernelView, kernel_view
from translator.model import ListenerKind, RouteConfigRule, ViewRules
from translator.reasons import Reason
from translator.request import Request
from xds_server.cache import Snapshot

FOLDERS = node_folders()


def label(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@functools.cache
def loaded(folder: Path) -> tuple[Snapshot, ViewRules]:
    snapshot = load_snapshot(folder)
    return snapshot, translate(snapshot)


@functools.cache
def view_of(folder: Path, name: str) -> tuple[RouteConfigRule, KernelView]:
    config = loaded(folder)[1].route_configs[name]
    return config, kernel_view(config, ROOMY)


@pytest.mark.parametrize("folder", FOLDERS, ids=label)
def test_everything_is_translated(folder: Path) -> None:
    snapshot, rules = loaded(folder)
    assert rules.rejected == ()
    assert rules.clusters.keys() == snapshot.clusters.keys()
    assert rules.route_configs.keys() >= snapshot.routes.keys()
    for name, message in snapshot.routes.items():
        hosts = rules.route_configs[name].virtual_hosts
        assert [h.name for h in hosts] == [h.name for h in message.virtual_hosts]
        assert [r.index for h in hosts for r in h.routes] == [*range(sum(len(h.routes) for h in hosts))]
    for rule in rules.listeners:
        if rule.kind is ListenerKind.HTTP:
            assert rule.reason is Reason.NONE
            assert rule.route_config in rules.route_configs
        elif rule.kind is ListenerKind.ENVOY:
            assert rule.reason is not Reason.NONE
        else:
            assert rule.port == 0
    # virtualInbound is not captured, the catch-all is.
    outbound = {name for name, message in snapshot.listeners.items() if message.traffic_direction == 2}
    assert {rule.name for rule in rules.listeners} == outbound


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_the_image_of_captured_configuration(layouts: Layouts, data: st.DataObject) -> None:
    folder = data.draw(st.sampled_from(FOLDERS), label="folder")
    snapshot, rules = loaded(folder)
    captured = [rule for rule in rules.listeners if rule.kind is ListenerKind.HTTP]
    if not captured:
        return
    listener = data.draw(st.sampled_from(captured))
    assert listener.route_config is not None
    config, view = view_of(folder, listener.route_config)
    built = image.build(config, rules.clusters, Ids(), 1, layouts=layouts, seed=1)
    reader = ImageReader(built, layouts, ROOMY)
    names = image.cluster_names(config)
    for _ in range(5):
        drawn = data.draw(requests(snapshot.routes[listener.route_config]))
        number = data.draw(st.integers(0, 2**64 - 1))
        to = (listener.address if listener.address != "0.0.0.0" else "10.1.2.3", listener.port)
        request = Request(drawn.method, drawn.host, drawn.path, drawn.headers, to)
        decision = decide(rules, request, number)
        assert decision.listener == listener.name
        if ":" in drawn.host and not drawn.host[-1].isdigit():
            continue  # no host the matcher is ever asked about
        outcome = reader.match(drawn, number)
        reason, _ = kernel_route(view, rules.clusters, drawn, number, config.ignore_port_in_host)
        assert outcome.reason is reason
        if decision.carried_by == "kernel":
            assert outcome.cluster is not None
            assert (outcome.route, names[outcome.cluster]) == (decision.route_index, decision.cluster)
