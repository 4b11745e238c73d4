"""What the command line says when something is wrong, and the documents that it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.lab import Lab
from tests.e2e.world import World, slow

_XLB: Final = Path(sys.executable).with_name("xlb")


def _run(*words: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=15, check=False, cwd="/"
    )
    return done.returncode, done.stdout, done.stderr


def usage_errors() -> None:
    """Unknown flags and commands, missing arguments: exit code 2."""
    wrong: Sequence[Sequence[str]] = (
        ("--no-such-flag",),
        ("no-such-command",),
        ("agent",),
        ("agent", "--no-such-flag"),
        ("status", "--no-such-flag"),
        ("status", "-o", "xml"),
        ("exec", "--no-such-flag", "--", "true"),
        ("exec", "--workload", "x"),
        ("exec", "--", "true"),
        ("exec", "--workload", "x", "--label", "novalue", "--", "true"),
        ("exec", "--workload", "../x", "--", "true"),
        ("explain", "--from", "x"),
        ("explain", "GET", "http://x/"),
        ("explain", "--from", "x", "GET", "http://x/", "-H", "nocolon"),
        ("exec", "--workload", "x", "--annotation", "novalue", "--", "true"),
        ("exec", "--workload", "x", "--annotation", "sidecar.istio.io/inject=maybe", "--", "true"),
        ("bypass", "add"),
        ("bypass", "add", "--workload", "x", "--to", "nowhere"),
        ("bypass", "remove"),
        ("top", "--interval", "0"),
        ("replay",),
        ("replay", "switch"),
        ("replay", "/nowhere", "--no-such-flag"),
        ("replay", "/nowhere"),
    )
    for words in wrong:
        code, said, error = _run(_XLB, *words)
        assert code == 2, f"xlb {' '.join(words)}: exit code {code}: {said}{error}"
        assert error, words
    for words in ((), ("--help",), ("agent", "--help"), ("exec", "--help"), ("--version",)):
        code, said, error = _run(_XLB, *words)
        assert "Traceback" not in error, error
        assert code in (0, 2), words
        assert said or error, words


def no_agent() -> None:
    """Commands that need an agent, where there is none: one line that says what to do, exit code 1."""
    with Lab("xlb-e2e") as lab:
        nowhere = lab.directory / "nowhere"
        for words in (
            ("status",),
            ("routes",),
            ("clusters",),
            ("endpoints",),
            ("workloads",),
            ("status", "-o", "json"),
            ("top", "--once"),
            ("explain", "--from", "x", "GET", "http://x/"),
            ("exec", "--workload", "x", "--", "true"),
        ):
            command, *rest = words
            _one_line(_run(_XLB, command, "--run-dir", nowhere, *rest), str(nowhere))
        _one_line(_run(_XLB, "replay", "switch", lab.directory, "--control", nowhere))


def bad_configuration() -> None:
    """Each fault of the file in one line that names the file, and the field where it is one."""
    with Lab("xlb-e2e") as lab:
        file = lab.directory / "bad.yaml"
        source = "source: {ads: '127.0.0.1:15010'}\n"
        faults = {
            "a: [1\n": "line",
            "- a list\n": "mapping",
            "": "source",
            f"{source}no_such_key: 1\n": "no_such_key",
            "source: {ads: '127.0.0.1:15010', no_such_key: 1}\n": "source.no_such_key",
            "source: {ads: 15010}\n": "source.ads",
            "source: {ads: nowhere}\n": "source.ads",
            f"{source}instance: ../up\n": "instance",
            f"{source}envoy: {{concurrency: 0}}\n": "envoy.concurrency",
            f"{source}run_dir: relative/path\n": "run_dir",
        }
        for text, names in faults.items():
            file.write_text(text)
            _one_line(_run(_XLB, "agent", "--config", file), str(file), names)
        file.write_bytes(b"\xff\xfe\0")
        _one_line(_run(_XLB, "agent", "--config", file), str(file))
        _one_line(_run(_XLB, "agent", "--config", lab.directory / "missing.yaml"), "missing.yaml")
        _one_line(_run(_XLB, "agent", "--config", lab.directory))
        file.write_text(f"{source}run_dir: {lab.directory}/run\nenvoy: {{binary: /no/such/envoy}}\n")
        _one_line(_run(_XLB, "agent", "--config", file), "/no/such/envoy")


def without_root() -> None:
    """The agent says that it needs root."""
    with Lab("xlb-e2e") as lab:
        file = lab.directory / "xlb.yaml"
        file.write_text(f"source: {{ads: '127.0.0.1:15010'}}\nrun_dir: {lab.directory}/run\n")
        # In a new user namespace root is nobody, who may still read what root may.
        _one_line(_run("unshare", "--user", _XLB, "agent", "--config", file), "root")


def two_agents() -> None:
    """A second agent of the same instance is refused in one line, and the first goes on."""
    with World() as world:
        config = world.lab.directory / "xlb.yaml"
        _one_line(_run(_XLB, "agent", "--config", config))
        world.warm()


def unreachable_ads_server() -> None:
    """The agent starts without its ADS server, says so, and takes what it gives when it comes."""
    with World() as world:
        world.mesh.stop_replay()
        world.mesh.kill_agent()
        world.mesh.start_agent()
        world.warm()  # the rules that were in force still are
        world.mesh.start_replay("bookinfo-all-v1")
        world.lab.wait("the ADS server", lambda: world.status()["source"]["phase"] == "connected")


def documents(world: World) -> None:
    """`explain -o json` has its fields, the others are objects, the tables have lines, and a workload's end shows."""
    world.warm()
    for name in ("status", "routes", "clusters", "endpoints", "workloads"):
        command = world.mesh.command(name)
        assert isinstance(json.loads(world.lab.run([*command, "-o", "json"])), dict)
        assert len(world.lab.run(command).splitlines()) >= 2, name
    fields = {
        "virtual_host",
        "route",
        "virtual_service",
        "action",
        "cluster",
        "path_upstream",
        "host_upstream",
        "status",
        "carried_by",
        "reason",
    }
    fast = world.mesh.explain("productpage-v1", "GET", "http://details:9080/details/0")
    assert fields <= set(fast), f"missing: {fields - set(fast)}"
    assert fast["carried_by"] == "kernel", fast
    assert fast["virtual_service"].endswith("/details"), fast
    assert fast["cluster"] == "outbound|9080|v1|details.default.svc.cluster.local", fast
    odd = world.mesh.explain("productpage-v1", "GET", f"http://details:9080{slow('/details/0')}")
    assert (odd["carried_by"], odd["reason"], odd["path_upstream"]) == ("envoy", "PATH_NORMALIZATION", "/details/0")
    code, said, error = _run(*world.mesh.command("explain", "--from", "no-such", "GET", "http://details:9080/"))
    _one_line((code, said, error), "no-such")


def exec_is_transparent(world: World) -> None:
    """Exit code, output, input and working directory are the command's; a command that is not there is said."""
    prefix = world.as_client()
    assert _run(*prefix, "sh", "-c", "exit 7")[0] == 7
    code, said, error = _run(*prefix, "sh", "-c", "echo out; pwd; echo err >&2")
    assert (code, said) == (0, "out\n/\n"), (code, said, error)
    assert "err\n" in error
    code, said, error = _run(*prefix, "/no/such/command")
    assert code in (126, 127), (code, error)
    assert "/no/such/command" in error


def _one_line(result: tuple[int, str, str], *names: str) -> None:
    code, said, error = result
    told = f"exit code {code}: {said}{error}"
    assert code == 1, told
    assert len(error.strip().splitlines()) == 1, told
    assert "Traceback" not in error, told
    for name in names:
        assert name in error, f"{name!r} is not named: {told}"
