"""The order in which a change is put in force, and what happens when Envoy refuses or is silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.captured import load_snapshot
from translator.envoy import EnvoyOptions, NodeResources
from translator.image import Layouts
from xds_server.cache import Snapshot
from xds_server.client import ApplyResult
from xds_server.resources import TypeUrl
from xds_server.server import Nacked
from xlb.apply import Applier
from xlb.captures import Capture, CaptureKind, Destination, mapped
from xlb.envoy_link import EnvoyLink, EnvoyRefusedError
from xlb.identity import Identity
from xlb.kernel import Kernel
from xlb.numbering import Endpoint, Numbering, Sizes
from xlb.view import View

Log = list[tuple[Any, ...]]


class FakeKernel:
    def __init__(self, log: Log) -> None:
        self._log = log

    def open_pools(self, pools: Mapping[Endpoint, int]) -> None:
        self._log.append(("pools", dict(pools)))

    def close_pools(self, numbers: Iterable[int]) -> None:
        if numbers:
            self._log.append(("close", sorted(numbers)))

    def swap_images(self, images: Mapping[int, bytes]) -> None:
        if images:
            self._log.append(("images", sorted(images)))

    def fill_images(self, images: Mapping[int, bytes]) -> Mapping[int, bytes]:
        return images

    def put(self, filled: Mapping[int, bytes]) -> None:
        self.swap_images(filled)
        time.sleep(0.02)  # as long as a program that began before might run

    def holds(self, filled: Mapping[int, bytes]) -> bool:
        return ("images", sorted(filled)) in self._log

    def swap_captures(self, views: Mapping[int, Mapping[Destination, Capture]]) -> None:
        if views:
            self._log.append(("captures", dict(views)))


class FakeEnvoy:
    """Answers what `answers` says, one for each push; then it takes everything."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.answers: list[Nacked | Exception] = []
        self.parts: dict[str, NodeResources] = {}
        self.connected = True

    def offer(self, parts: Mapping[str, NodeResources]) -> bool:
        if all(view in self.parts and self.parts[view].resources == part.resources for view, part in parts.items()):
            return False
        self._log.append(("offer", sorted(parts)))
        return True

    async def settled(self, parts: Mapping[str, NodeResources]) -> Nacked | None:
        await asyncio.sleep(0.01)
        if self.answers:
            answer = self.answers.pop(0)
            self._log.append(("refused",))
            if isinstance(answer, Exception):
                raise answer
            return answer
        self._log.append(("settled",))
        self.parts.update(parts)
        return None

    def take_back(self) -> None:
        self._log.append(("back",))

    def withdraw(self, view: str) -> None:
        self._log.append(("withdraw", view))
        self.parts.pop(view, None)


class Stage:
    def __init__(self, layouts: Layouts) -> None:
        self.log: Log = []
        self.envoy = FakeEnvoy(self.log)
        self.numbering = Numbering(Sizes(views=16, images=64, pools=64, cursors=64))
        self.saved = 0
        self.applier = Applier(
            cast(Kernel, FakeKernel(self.log)),
            cast(EnvoyLink, self.envoy),
            self.numbering,
            layouts,
            address="127.64.0.1",
            options=EnvoyOptions(),
            save=self._save,
            refresh_keeper=lambda: self.log.append(("refresh",)),
        )

    def _save(self) -> None:
        self.saved += 1

    def view(self, name: str, *, recovered: bool = False) -> View:
        identity = Identity(name)
        index = self.numbering.views.take(identity.key, 0.0)
        made = View(identity, index, "127.0.0.1:1", self.applier.apply, lambda timing: None)
        self.applier.add(made, recovered=recovered)
        return made

    def steps(self) -> list[str]:
        names = [str(entry[0]) for entry in self.log]
        self.log.clear()
        return names


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[Stage]:
    task = asyncio.create_task(stage.applier.run())
    try:
        yield stage
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def stage(layouts: Layouts) -> Stage:
    return Stage(layouts)


def snapshot(scenarios: Path, name: str, node: str = "productpage-v1") -> Snapshot:
    return load_snapshot(scenarios / name / node)


async def test_envoy_first_then_images_then_captures(stage: Stage, scenarios: Path) -> None:
    view = stage.view("w")
    async with running(stage):
        result = await stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1"))
        await asyncio.sleep(0)
    assert result == ApplyResult()
    assert stage.saved == 1
    captured = next(entry for entry in stage.log if entry[0] == "captures")[1]
    assert captured == {
        view.index: {
            Destination(mapped("0.0.0.0"), 9080): Capture(CaptureKind.MIXED, image=1, envoy_port=15100),
        }
    }
    assert stage.steps() == ["offer", "pools", "settled", "images", "captures", "refresh"]


async def test_only_what_changes_is_touched(stage: Stage, scenarios: Path) -> None:
    view = stage.view("w")
    async with running(stage):
        first = snapshot(scenarios, "bookinfo-all-v1")
        await stage.applier.apply(view, first)
        await asyncio.sleep(0)
        stage.steps()
        await stage.applier.apply(view, replace(first, version="2"))
        assert stage.steps() == []
        await stage.applier.apply(view, snapshot(scenarios, "bookinfo-reviews-50-v3"))
        # The pool of reviews-v3 is new; the slot and what is captured stay.
        assert stage.steps() == ["offer", "pools", "settled", "images"]


async def test_a_refusal_that_names_a_resource_costs_only_that(stage: Stage, scenarios: Path) -> None:
    view = stage.view("w")
    async with running(stage):
        await stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1"))
        await asyncio.sleep(0)
        stage.steps()
        stage.envoy.answers = [Nacked(TypeUrl.ROUTE, f"{view.name}~9080: not this one")]
        result = await stage.applier.apply(view, snapshot(scenarios, "bookinfo-reviews-50-v3"))
    assert [(one.type_url, one.name) for one in result.rejected] == [(TypeUrl.ROUTE, "9080")]
    assert "not this one" in result.rejected[0].why
    assert "images" not in stage.steps()


async def test_a_refusal_without_a_name_costs_the_change(stage: Stage, scenarios: Path) -> None:
    view = stage.view("w")
    async with running(stage):
        stage.envoy.answers = [Nacked(TypeUrl.ROUTE, "no")]
        with pytest.raises(EnvoyRefusedError, match="refuses the configuration: no"):
            await stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1"))
        assert stage.steps() == ["offer", "pools", "refused", "back"]
        await stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1"))


async def test_one_view_s_refusal_does_not_hold_the_others_up(stage: Stage, scenarios: Path) -> None:
    views = [stage.view("one"), stage.view("two")]
    async with running(stage):
        stage.envoy.answers = [Nacked(TypeUrl.ROUTE, "no"), Nacked(TypeUrl.ROUTE, "no")]
        results = await asyncio.gather(
            *(stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1")) for view in views),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [EnvoyRefusedError, ApplyResult]


async def test_views_that_change_at_once_go_in_together(stage: Stage, scenarios: Path) -> None:
    views = [stage.view("one"), stage.view("two")]
    async with running(stage):
        await asyncio.gather(
            *(stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1")) for view in views),
        )
        await asyncio.sleep(0)
    assert [entry[1] for entry in stage.log if entry[0] == "offer"] == [["default.one-1", "default.two-2"]]
    assert stage.steps().count("images") == 1


async def test_an_envoy_that_is_away_fails_everybody(stage: Stage, scenarios: Path) -> None:
    views = [stage.view("one"), stage.view("two")]
    stage.envoy.connected = False
    async with running(stage):
        stage.envoy.answers = [EnvoyRefusedError("is not connected")]
        results = await asyncio.gather(
            *(stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1")) for view in views),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [EnvoyRefusedError, EnvoyRefusedError]


async def test_a_view_that_ends_leaves_nothing(stage: Stage, scenarios: Path) -> None:
    view = stage.view("w")
    async with running(stage):
        await stage.applier.apply(view, snapshot(scenarios, "bookinfo-all-v1"))
        await asyncio.sleep(0)
        pools = [*stage.numbering.pools.taken.values()]
        stage.steps()
        await stage.applier.remove(view)
    assert [entry for entry in stage.log if entry[0] == "close"] == [("close", sorted(pools))]
    assert stage.steps() == ["withdraw", "captures", "images", "close", "refresh"]
    numbers = stage.numbering
    assert not any(n.taken for n in (numbers.images, numbers.ports, numbers.cursors, numbers.pools, numbers.views))


async def test_views_of_an_earlier_agent_wait_for_each_other(stage: Stage, scenarios: Path) -> None:
    one, two = stage.view("one", recovered=True), stage.view("two", recovered=True)
    async with running(stage):
        first = asyncio.create_task(stage.applier.apply(one, snapshot(scenarios, "bookinfo-all-v1")))
        await asyncio.sleep(0.05)
        assert stage.steps() == []
        await stage.applier.apply(two, snapshot(scenarios, "bookinfo-all-v1"))
        await first
    assert ("offer", ["default.one-1", "default.two-2"]) in stage.log
