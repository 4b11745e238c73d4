"""`xlb upgrade keeper`: what it asks, what it says, its exit codes; what the agent says of one that failed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_agent_cli import Fake, run
from xlb.keeper_process import KeeperError, KeeperSettings, KeeperSupervisor
from xlb.supervisor import Phase, State, SupervisorError

_TOOK_OVER = {"from": 11, "stood_still_ms": 7.5, "open": {"A": 1000, "U": 8, "E": 1}, "relays": 1}


@pytest.fixture
def run_dir() -> Iterator[Path]:
    # Not tmp_path: its name may be longer than a Unix socket's may be.
    with tempfile.TemporaryDirectory(prefix="xlb-") as folder:
        yield Path(folder)


def test_it_says_what_was_taken_over(run_dir: Path) -> None:
    document = {"part": "keeper", "before": 11, "pid": 12, "took_over": _TOOK_OVER}
    fake = Fake(run_dir, document)
    result = run("upgrade", "--run-dir", run_dir, "keeper")
    told = run("upgrade", "--run-dir", run_dir, "keeper", "-o", "json")
    fake.close()
    assert result.exit_code == 0
    assert result.output == (
        "keeper: process 12 has taken the place of process 11, with 1009 connections, which waited for 7.5 ms\n"
    )
    assert json.loads(told.output) == document
    assert fake.asked[0].startswith("POST /upgrade ")
    assert fake.asked[0].endswith('{"part": "keeper"}')


def test_a_failure_is_told_in_one_line(run_dir: Path) -> None:
    fake = Fake(run_dir, {"error": "the keeper was not upgraded (x); process 11 goes on as before"}, 503)
    result = run("upgrade", "--run-dir", run_dir, "keeper")
    fake.close()
    assert result.exit_code == 1
    assert result.output == "Error: the keeper was not upgraded (x); process 11 goes on as before\n"


def test_usage_and_no_agent(run_dir: Path) -> None:
    for words in (("upgrade",), ("upgrade", "envoy"), ("upgrade", "keeper", "more")):
        assert run(*words).exit_code == 2
    result = run("upgrade", "--run-dir", run_dir, "keeper")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: no agent answers at {run_dir}/admin.sock")
    assert "  upgrade " in run("--help").output


class Keeper(KeeperSupervisor):
    """One whose successors fail, after which `after` is its state."""

    def __init__(self, after: State) -> None:
        super().__init__(KeeperSettings("x", Path("/nowhere"), "127.0.0.1"))
        self._state = State(Phase.RUNNING, 11)
        self._after = after

    async def succeed(self, limit: float) -> int:
        self._state = self._after
        raise SupervisorError("exit code 1: keeper: no room")


@pytest.mark.parametrize(
    ("after", "rest"),
    [
        (State(Phase.RUNNING, 11), "process 11 goes on as before"),
        (State(Phase.WAITING), "and the one that ran has ended too"),
        (State(Phase.RUNNING, 13, restarts=1), "and the one that ran has ended too"),
    ],
)
async def test_what_runs_after_a_failure_is_told(after: State, rest: str) -> None:
    with pytest.raises(KeeperError) as raised:
        await Keeper(after).upgrade()
    assert str(raised.value) == f"the keeper was not upgraded (exit code 1: keeper: no room); {rest}"
