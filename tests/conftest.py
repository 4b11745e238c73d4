"""What a test needs is told by its folder; what is not there skips it, with the same short reason for all.

unit: nothing · fuzz: nothing, or root where marked · kernel, e2e, bench: root · envoy, e2e, bench: the Envoy binary
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ENVOY_BINARY = REPOSITORY / ".venv-envoy" / "bin" / "envoy"
ROOT_FOLDERS = frozenset({"kernel", "e2e", "bench"})
ENVOY_FOLDERS = frozenset({"envoy", "e2e", "bench"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by folder, then skip those whose needs are not met."""
    tests = Path(__file__).parent
    is_root = os.geteuid() == 0
    has_envoy = ENVOY_BINARY.exists()
    for item in items:
        folder = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if folder in ROOT_FOLDERS:
            item.add_marker(pytest.mark.root)
        if folder in ENVOY_FOLDERS:
            item.add_marker(pytest.mark.needs_envoy)
        if not is_root and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        elif not has_envoy and item.get_closest_marker("needs_envoy"):
            item.add_marker(pytest.mark.skip(reason="needs the Envoy binary: make setup"))


@pytest.fixture
def envoy_binary() -> Path:
    """The real Envoy that scripts/setup.sh fetched."""
    return ENVOY_BINARY


@pytest.fixture
def scenarios() -> Path:
    """Captured Istio configuration that the tests carry with them (tests/data/scenarios/README.md)."""
    return REPOSITORY / "tests" / "data" / "scenarios"
