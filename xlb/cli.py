"""The command line.  Every command imports what it needs by itself: most of them must start at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

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
@click.option("--no-wait", is_flag=True, help="Do not wait (up to 5 s) for its configuration.")
@_run_dir
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def exec_command(
    name: str,
    namespace: str,
    labels: Sequence[str],
    ip: str | None,
    service_account: str | None,
    no_wait: bool,
    run_dir: Path | None,
    command: Sequence[str],
) -> None:
    """Run a command as a workload of the mesh, in a cgroup of its own."""
    from xlb.identity import IdentityError, wanted
    from xlb.run_workload import WAIT_S, ClientError, Request, RunError, become, join

    pairs = _labels(labels)
    try:
        wanted(name, namespace, pairs, service_account, ip)
    except IdentityError as error:
        raise click.UsageError(str(error)) from None
    request = Request(name, namespace, pairs, service_account, ip)
    try:
        warning = join(_client(run_dir), request, 0.0 if no_wait else WAIT_S)
        if warning:
            click.echo(f"Warning: {warning}", err=True)
        become(command)
    except ClientError as error:
        _fail(str(error))
    except RunError as error:
        _fail(str(error), error.code)


def _labels(labels: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--label")
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
