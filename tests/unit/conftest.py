"""Fixtures of the unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from translator.image import Layouts


@pytest.fixture(scope="session")
def layouts() -> Layouts:
    """The layouts of the compiled object: it need not be loadable here, only there."""
    compiled: Path = REPOSITORY / "bpf" / "build" / "xlb.bpf.o"
    if not compiled.exists():
        pytest.skip("needs the BPF objects: make build")
    from bpf import layout

    return layout.load(compiled)
