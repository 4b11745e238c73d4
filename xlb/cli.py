"""The command line.  Every command imports what it needs by itself: most of them must start at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

_UPGRADE_S: Final = 30.0
_RUN_DIR_HELP: Final = "The agent's run directory [default: $XLB_RUN_DIR, else /run/xlb/default]."


class _Commands(click.Group):
    """Commands, of which `replay` is another module's and comes only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "replay"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "replay":
            from xds_server.replay_cli import replay_command

            return replay_command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xlb-mesh", prog_name="xlb")
def main() -> None:
    """XLB: Istio VirtualServices without sidecars.

    \b
    Exit codes: 0 done, 1 failed, 2 usage.
    """


def _run_dir(function: Callable[..., None]) -> Callable[..., None]:
    option = click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), help=_RUN_DIR_HELP)
    return option(function)


def _output(function: Callable[..., None]) -> Callable[..., None]:
    option = click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Format."
    )
    return option(function)


def _fail(text: str, code: int = 1) -> NoReturn:
    click.echo(f"Error: {text}", err=True)
    raise SystemExit(code)


@main.command("agent")
@click.option(
    "--config", "config_path", required=True, type=click.Path(path_type=Path), help="YAML file; see README.md."
)
def agent_command(config_path: Path) -> None:
    """Run the daemon: configuration in, kernel and Envoy programmed.

    SIGTERM ends everything.  SIGHUP ends the agent alone: what it has put in force stays, and the next agent takes it
    over without touching a connection.
    """
    import os
    import signal

    from xlb.config import ConfigError, load_config

    try:
        settings = load_config(config_path)
    except ConfigError as error:
        _fail(str(error))
    if os.geteuid() != 0:
        _fail("xlb agent needs root (it loads BPF programs): run it as root")
    # Until the agent handles them: what has begun is undone, and the exit code is that of an ordered end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its core prints every closed connection otherwise
    from xlb.agent import AgentError
    from xlb.daemon import serve

    try:
        serve(settings)
    except AgentError as error:
        _fail(str(error))


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


@main.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--workload", "name", required=True, metavar="NAME", help="Its name, as istiod knows it.")
@click.option("--namespace", default="default", show_default=True, metavar="NS")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="May be given several times.")
@click.option("--ip", metavar="IP", help="Its address [default: that of the running workload of this name].")
@click.option("--service-account", metavar="SA")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="KEY=VALUE",
    help="May be given several times.  Honoured are sidecar.istio.io/inject=false and those of "
    "traffic.sidecar.istio.io/ for outbound ports and IP ranges.",
)
@click.option("--no-wait", is_flag=True, help="Do not wait (up to 5 s) for its configuration.")
@_run_dir
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def exec_command(
    name: str,
    namespace: str,
    labels: Sequence[str],
    ip: str | None,
    service_account: str | None,
    annotations: Sequence[str],
    no_wait: bool,
    run_dir: Path | None,
    command: Sequence[str],
) -> None:
    """Run a command as a workload of the mesh, in a cgroup of its own."""
    from xlb.identity import IdentityError, wanted
    from xlb.run_workload import WAIT_S, ClientError, Request, RunError, become, join

    pairs, notes = _pairs(labels, "--label"), _pairs(annotations, "--annotation")
    try:
        wanted(name, namespace, pairs, service_account, ip, notes)
    except IdentityError as error:
        raise click.UsageError(str(error)) from None
    request = Request(name, namespace, pairs, service_account, ip, notes)
    try:
        warning = join(_client(run_dir), request, 0.0 if no_wait else WAIT_S)
        if warning:
            click.echo(f"Warning: {warning}", err=True)
        become(command)
    except ClientError as error:
        _fail(str(error))
    except RunError as error:
        _fail(str(error), error.code)


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint=option)
        pairs[key] = value
    return pairs


def _document_command(name: str, help_text: str) -> None:
    """A command that prints one of the agent's documents."""

    @main.command(name, help=help_text)
    @_run_dir
    @_output
    def command(run_dir: Path | None, output: str) -> None:
        _show(_get(run_dir, name, ()), name, output)


_document_command("status", "The agent, its parts, and what each view's requests met.")
_document_command("routes", "All routes in force, and who carries them.")
_document_command("clusters", "All clusters in force, and who carries them.")
_document_command("endpoints", "All endpoints in force.")
_document_command("workloads", "The registered workloads and their processes.")


@main.command("explain")
@click.option("--from", "workload", required=True, metavar="WORKLOAD", help="A registered workload.")
@click.option("--namespace", default="default", show_default=True, metavar="NS")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="May be given several times.")
@_run_dir
@_output
@click.argument("method")
@click.argument("url")
def explain_command(
    workload: str, namespace: str, headers: Sequence[str], run_dir: Path | None, output: str, method: str, url: str
) -> None:
    """What would become of a request of a workload: virtual host, route, cluster, kernel or Envoy, and why."""
    query = [("from", workload), ("namespace", namespace), ("method", method), ("url", url)]
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{header!r} is not 'NAME: VALUE'", param_hint="-H")
        query.append(("header", f"{name.strip()}:{value.strip()}"))
    _show(_get(run_dir, "explain", query), "explanation", output)


@main.command("top")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="One table (or document) over one interval, and out.")
@_run_dir
@_output
def top_command(interval: float, once: bool, run_dir: Path | None, output: str) -> None:
    """What happens now: requests/s by view, kernel or Envoy and why, pools.  With -o json: a document a line."""
    import shutil
    import sys
    import time

    from xlb.top import rates, render, screen

    redraw = output == "table" and not once and sys.stdout.isatty()
    try:
        before = _get(run_dir, "top", ())
        while True:
            time.sleep(interval)
            after = _get(run_dir, "top", ())
            told = rates(before, after)
            if output == "json":
                click.echo(json.dumps(told))
            elif redraw:
                size = shutil.get_terminal_size()
                click.echo(screen(render(told), size.columns, size.lines), nl=False)
            else:
                click.echo(render(told))
            if once:
                return
            before = after
    except KeyboardInterrupt:
        return


@main.group("bypass")
def bypass_group() -> None:
    """Off-switches, in force at once for new connections; they stay over restarts of the agent."""


def _switch(function: Callable[..., None]) -> Callable[..., None]:
    """What a bypass is of."""
    function = click.option("--port", type=click.IntRange(1, 65535), help="Connections to this port [default: all].")(
        function
    )
    return click.option("--workload", metavar="NS/NAME", help="Of this workload [default: of all, with --port].")(
        function
    )


@bypass_group.command("add")
@_switch
@click.option(
    "--to",
    type=click.Choice(["direct", "envoy"]),
    default="direct",
    show_default=True,
    help="Plain TCP to where the client says, or straight to Envoy with its rules.",
)
@click.option("--established", is_flag=True, help="Established ones too: they are Envoy's from their next request on.")
@_run_dir
def bypass_add(workload: str | None, port: int | None, to: str, established: bool, run_dir: Path | None) -> None:
    """Take connections of a workload, to a port, or both off the kernel's way."""
    asked = {**_checked(workload, port, to), "established": established}
    told = _post(run_dir, "bypasses", asked)
    rest = f"; {told['established']} established ones go to Envoy from their next request on" if established else ""
    click.echo(told["text"] + rest)
    if not told["known"]:
        click.echo(f"Warning: no workload {told['workload']} is registered now; it holds when one is", err=True)


@bypass_group.command("remove")
@_switch
@_run_dir
def bypass_remove(workload: str | None, port: int | None, run_dir: Path | None) -> None:
    """Remove the bypass of the same workload and port.

    What it has sent to Envoy of established connections stays there until they end.
    """
    _post(run_dir, "bypasses/remove", _checked(workload, port, "direct"))


@bypass_group.command("list")
@_run_dir
@_output
def bypass_list(run_dir: Path | None, output: str) -> None:
    """All bypasses."""
    _show(_get(run_dir, "bypasses", ()), "bypasses", output)


def _checked(workload: str | None, port: int | None, to: str) -> dict[str, Any]:
    from xlb.bypass import BypassError, from_document

    try:
        return from_document({"workload": workload, "port": port, "to": to}).document()
    except BypassError as error:
        raise click.UsageError(str(error)) from None


def _post(run_dir: Path | None, what: str, document: dict[str, Any]) -> dict[str, Any]:
    from xlb.client import ClientError

    try:
        told: dict[str, Any] = _client(run_dir).post(what, document)
    except ClientError as error:
        _fail(str(error))
    return told


@main.command("upgrade")
@_run_dir
@_output
@click.argument("part", type=click.Choice(["keeper"]))
def upgrade_command(run_dir: Path | None, output: str, part: str) -> None:
    """Replace a running part by what is installed now.

    The keeper's successor takes over every connection, in use or not, and no request is lost.  If it cannot, the one
    that runs goes on, and this says why.  The agent itself: end it with SIGHUP and start it again.
    """
    from xlb.client import ClientError

    try:
        told = _client(run_dir).post("upgrade", {"part": part}, _UPGRADE_S)
    except ClientError as error:
        _fail(str(error))
    _show(told, "upgrade", output)


def _client(run_dir: Path | None) -> Any:
    from xlb import client

    return client.AdminClient(client.run_dir(run_dir))


def _get(run_dir: Path | None, what: str, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    from xlb.client import ClientError

    try:
        told: dict[str, Any] = _client(run_dir).get(what, query)
    except ClientError as error:
        _fail(str(error))
    return told


def _show(told: dict[str, Any], kind: str, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(told, indent=2))
        return
    from xlb import tables

    click.echo(getattr(tables, kind)(told))


if __name__ == "__main__":
    main()
