"""`xlb replay DIR` and `xlb replay switch DIR`: the command-line rim of `xds_server.replay`.

gRPC and asyncio are imported only by the command that serves: the rest of the command line stays light.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Final

import click

DEFAULT_LISTEN: Final = "127.0.0.1:15010"
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


class _ServeByDefault(click.Group):
    """A group whose first argument may be a folder: then the command `serve` is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["serve", *args]
        return super().parse_args(ctx, args)


def control_path(listen: str) -> Path:
    """Where the control socket of a replay is by default: named by its port, so that several run side by side."""
    if listen.startswith("unix://"):
        return Path(listen.removeprefix("unix://") + ".control")
    return _runtime_folder() / f"replay-{listen.rpartition(':')[2]}.sock"


def _runtime_folder() -> Path:
    if os.geteuid() == 0:
        return Path("/run/xlb")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/xlb-{os.geteuid()}") / "xlb"


@click.group(
    "replay",
    cls=_ServeByDefault,
    subcommand_metavar="DIR | switch DIR",
    short_help="Serve captured istiod responses over ADS.",
)
def replay_command() -> None:
    """Serve a folder of captured istiod responses over ADS, or switch a running server to another one.

    \b
    xlb replay SCENARIO             serve SCENARIO/NODE/{cds,eds,lds,rds}.pb to the workloads named there
    xlb replay switch SCENARIO      push another folder to everyone connected
    """


@replay_command.command("serve", hidden=True)
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="HOST:PORT (port 0: any) or unix:///PATH.")
@click.option("--control", type=click.Path(path_type=Path), help="Control socket [default: named by the port].")
def serve_command(folder: Path, listen: str, control: Path | None) -> None:
    """Serve DIR until interrupted."""
    import asyncio

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its core prints every closed connection otherwise
    from xds_server.captures import CaptureError
    from xds_server.grpc_options import check_target

    try:
        check_target(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    try:
        asyncio.run(_serve(folder, listen, control))
    except (CaptureError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


async def _serve(folder: Path, listen: str, control: Path | None) -> None:
    import asyncio

    from xds_server.replay import Replay, ReplayControl

    replay = Replay(folder)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    address = await replay.start(listen)
    try:
        path = control or control_path(address)
        commands = ReplayControl(replay, path)
        await commands.start()
        try:
            nodes = ", ".join(n.folder for n in replay.scenario.nodes)
            click.echo(f"serving {replay.scenario.name} ({nodes}) on {address}; control socket {path}")
            await stopped.wait()
        finally:
            await commands.stop()
    finally:
        await replay.stop()


@replay_command.command("switch")
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--listen", default=DEFAULT_LISTEN, show_default=True, help="The address the server listens on.")
@click.option("--control", type=click.Path(path_type=Path), help="Its control socket [default: named by the port].")
@click.option("--wait", default=5.0, show_default=True, help="Seconds to wait for the clients' ACKs.")
def switch_command(folder: Path, listen: str, control: Path | None, wait: float) -> None:
    """Push DIR to every client of a running `xlb replay`; fails if one of them refuses it."""
    path = control or control_path(listen)
    answer = _ask(path, {"switch": str(folder.resolve()), "wait": wait}, wait + 10)
    if answer.get("error"):
        raise click.ClickException(str(answer["error"]))
    refused = answer.get("refused")
    for line in refused if isinstance(refused, list) else []:
        click.echo(f"refused by {line}", err=True)
    click.echo(f"switched to {answer['scenario']}: {answer['clients']} clients, {answer['silent']} still to answer")
    if refused:
        raise SystemExit(1)


def _ask(path: Path, command: dict[str, object], timeout: float) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(command).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise click.ClickException(
                f"no replay answers on {path} ({error}): start `xlb replay DIR`, or name its --listen or --control"
            ) from None
    if not isinstance(answer, dict):
        raise click.ClickException(f"{path} is not the control socket of a replay")
    return answer
