"""A process under supervision has a successor: it takes the place, or the one that runs goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from xlb.supervisor import Phase, Program, Supervisor, SupervisorError

# As a successor ($1), it does what is in the file "heir"; else it sleeps until it is told to leave.
_SCRIPT = """
trap 'exit 0' USR1
cd {folder}
if [ "$1" = --take-over ]; then . ./heir; read -r stat </proc/$$/stat; echo "$stat" >pid; fi
while :; do sleep 0.02; done
"""
_TAKES_OVER = 'read -r old rest <pid; kill -USR1 "$old"; while kill -0 "$old" 2>/dev/null; do sleep 0.01; done'


async def until(ready: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def program(folder: Path, heir_words: tuple[str, ...] = ("--take-over",)) -> Program:
    return Program(
        name="thing",
        argv=("/bin/sh", "-c", _SCRIPT.format(folder=folder), "thing"),
        pid_path=folder / "pid",
        log_path=folder / "log",
        settings_path=folder / "settings",
        settings="x",
        heir_words=heir_words,
    )


@asynccontextmanager
async def supervised(folder: Path, heir: str) -> AsyncIterator[Supervisor]:
    (folder / "heir").write_text(heir)
    supervisor = Supervisor(jitter=lambda: 0.9)
    await supervisor.run(program(folder))
    await until(lambda: (folder / "pid").exists())
    try:
        yield supervisor
    finally:
        await supervisor.stop(grace=1.0)


def runs(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_successor_takes_the_place(tmp_path: Path) -> None:
    async with supervised(tmp_path, _TAKES_OVER) as supervisor:
        await _succeeds(supervisor, tmp_path)
        pid = await _succeeds(supervisor, tmp_path)
        # It is supervised as any other.
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.state.restarts == 1 and supervisor.state.phase is Phase.RUNNING)
        assert supervisor.state.pid != pid
    assert not runs(supervisor.state.pid)


async def _succeeds(supervisor: Supervisor, folder: Path) -> int:
    before = supervisor.state.pid
    pid = await supervisor.succeed(10.0)
    assert pid != before
    assert not runs(before)
    assert (supervisor.state.phase, supervisor.state.pid) == (Phase.RUNNING, pid)
    assert supervisor.state.restarts == 0
    await until(lambda: (folder / "pid").read_text().startswith(f"{pid} "))
    return pid


async def test_the_next_agent_keeps_a_successor(tmp_path: Path) -> None:
    async with supervised(tmp_path, _TAKES_OVER) as first:
        pid = await first.succeed(10.0)
        await until(lambda: (tmp_path / "pid").read_text().startswith(f"{pid} "))
        await first.release()
        second = Supervisor()
        await second.run(program(tmp_path))
        assert (second.state.pid, second.state.adopted) == (pid, True)
        await second.stop(grace=1.0)
        assert not runs(pid)


async def test_an_agent_finds_the_successor_that_another_has_started(tmp_path: Path) -> None:
    async with supervised(tmp_path, _TAKES_OVER) as first:
        second = Supervisor(jitter=lambda: 0.0)
        await second.run(program(tmp_path))
        pid = await first.succeed(10.0)
        await until(lambda: second.state.pid == pid)
        assert second.state.adopted
        await second.release()


@pytest.mark.parametrize(
    ("heir", "why"),
    [
        ("echo 'thing: it is not to be' >&2; exit 1", "exit code 1: thing: it is not to be"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("sleep 60", "it did nothing for 0.5 s"),
    ],
)
async def test_one_that_cannot_changes_nothing(tmp_path: Path, heir: str, why: str) -> None:
    async with supervised(tmp_path, heir) as supervisor:
        before = supervisor.state
        (tmp_path / "log").open("a").write("an old complaint\n")
        with pytest.raises(SupervisorError) as raised:
            await supervisor.succeed(0.5 if heir.startswith("sleep") else 10.0)
        assert str(raised.value) == why
        assert supervisor.state == before
        assert runs(before.pid)
        (tmp_path / "heir").write_text(_TAKES_OVER)
        assert await supervisor.succeed(10.0) != before.pid


async def test_one_at_a_time(tmp_path: Path) -> None:
    async with supervised(tmp_path, f"sleep 0.3; {_TAKES_OVER}") as supervisor:
        first = asyncio.create_task(supervisor.succeed(10.0))
        await asyncio.sleep(0)
        with pytest.raises(SupervisorError, match="starting already"):
            await supervisor.succeed(10.0)
        assert await first == supervisor.state.pid


async def test_the_end_is_the_end_of_both(tmp_path: Path) -> None:
    async with supervised(tmp_path, "echo $$ >started; sleep 60") as supervisor:
        asking = asyncio.create_task(supervisor.succeed(20.0))
        await until(lambda: (tmp_path / "started").exists() and bool((tmp_path / "started").read_text()))
        old, heir = supervisor.state.pid, int((tmp_path / "started").read_text())
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert runs(old)
        assert runs(heir)
        await supervisor.stop(grace=1.0)
        assert not runs(old)
        assert not runs(heir)


async def test_what_cannot_hand_over_is_told(tmp_path: Path) -> None:
    supervisor = Supervisor()
    with pytest.raises(SupervisorError, match="nothing runs that could hand over"):
        await supervisor.succeed(1.0)
    await supervisor.run(program(tmp_path, heir_words=()))
    with pytest.raises(SupervisorError, match="nothing runs that could hand over"):
        await supervisor.succeed(1.0)
    await supervisor.stop(grace=1.0)
