"""The oracle against the very thing it has recorded: what it finds wrong with a plain Envoy is the oracle's mistake.

Only mode NONE can be captured without certificates or special settings of istiod; the other recordings are checked
so by hand: `python -m tests.oracle DIR --plain-envoy`, with a DIR that has the stock-envoy captures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracle.__main__ import describe
from tests.oracle.play import play_apart


@pytest.mark.root
def test_a_plain_envoy_passes(scenarios: Path) -> None:
    played = play_apart(scenarios / "bookinfo-interception-none" / "oracle.json", plain=True)
    assert played.passed == played.cases == 8, describe(played, 0.0)
    assert (played.by_kernel, played.by_envoy) == (0, 0)
