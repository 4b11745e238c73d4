"""`make demo` without its set-up: the main job, told step by step, ends with every check passed and nothing left."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.timeout(400)
def test_the_demonstration_ends_well() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 lost, 0 by a rule not in force" in done.stdout.splitlines()[-1], done.stdout
