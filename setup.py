"""Compiles the BPF objects into the wheel, so that a node needs libbpf only; everything else is in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithBpf(build_py):
    """`build_py` that runs `python -m bpf.build` first (needs clang-19, libbpf-dev and the running kernel's BTF).

    An editable install does not: there `make build` compiles, and only when a source has changed.
    """

    def run(self) -> None:
        if not self.editable_mode:
            subprocess.run([sys.executable, "-m", "bpf.build"], check=True, cwd=Path(__file__).parent)
        super().run()


setup(cmdclass={"build_py": BuildWithBpf})
