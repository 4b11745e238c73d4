"""One test per scene: every public function of the modules in `scenes`; apart.py says in which world each is played."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e import scenes
from tests.e2e.apart import LIMIT_S, Stage, run_apart, takes_world

_LONG_S: Final = 200  # of the scene that compiles Go's standard library, where that has not been done before


def all_scenes() -> list[str]:
    """As apart.py takes them; those that share their world first."""
    found: list[str] = []
    for entry in pkgutil.iter_modules(scenes.__path__):
        module = importlib.import_module(f"{scenes.__name__}.{entry.name}")
        found += [
            f"{module.__name__}:{name}"
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    return sorted(found, key=takes_world, reverse=True)


def _short(scene: str) -> str:
    return scene.removeprefix(f"{scenes.__name__}.").replace(":", "-")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as shared:
        yield shared


@pytest.mark.timeout(_LONG_S + 60)
@pytest.mark.parametrize("scene", all_scenes(), ids=_short)
def test_scene(scene: str, stage: Stage) -> None:
    limit_s = _LONG_S if scene.endswith(":go") else LIMIT_S
    print(stage.play(scene, limit_s=limit_s) if takes_world(scene) else run_apart(scene, limit_s=limit_s))
