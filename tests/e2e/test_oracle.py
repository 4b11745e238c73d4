"""Every recorded bookinfo answer of a real Envoy, through XLB; see tests/oracle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.oracle.__main__ import describe
from tests.oracle.play import play_apart
from tests.oracle.scenario import find_oracles

CARRIED = REPOSITORY / "tests" / "data" / "scenarios"
# More recordings than the tests carry with them may lie beside the checkout.
BESIDE = Path(os.environ.get("XLB_SCENARIOS", REPOSITORY.parent / "shared" / "istio" / "scenarios"))


def oracle_files() -> list[Path]:
    """All that the tests carry, and the bookinfo ones beside the checkout that they do not."""
    carried = find_oracles(CARRIED)
    names = {file.parent.name for file in carried}
    beside = sorted(BESIDE.glob("bookinfo-*/oracle*.json")) if BESIDE.is_dir() else []
    return [*carried, *(file for file in beside if file.parent.name not in names)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("file", oracle_files(), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_answers_are_envoys(file: Path) -> None:
    played = play_apart(file)
    assert not played.failed, describe(played, 0.0)
    # The point of it all: once its pools are warm, the kernel carries what it can carry.
    assert played.by_kernel > played.by_envoy, describe(played, 0.0)
