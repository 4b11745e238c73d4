"""The configuration file: every mistake is one line that names the file, the field and the remedy."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from xlb.config import AgentConfig, ConfigError, EnvoyConfig, LogConfig, LogFormat, MtlsEndpoints, load_config


def load(tmp_path: Path, text: str) -> AgentConfig:
    path = tmp_path / "xlb.yaml"
    path.write_text(text)
    return load_config(path)


def test_the_least(tmp_path: Path) -> None:
    assert load(tmp_path, "source: {ads: '127.0.0.1:15010'}") == AgentConfig(
        ads="127.0.0.1:15010", instance="default", run_dir=Path("/run/xlb/default")
    )


def test_everything(tmp_path: Path) -> None:
    text = """
        instance: one
        run_dir: /run/other
        source: {ads: "unix:///run/istiod.sock"}
        envoy: {binary: /bin/envoy, concurrency: 2, log_level: off}
        mtls_endpoints: plaintext
        log: {level: debug, format: json}
        address: 127.64.1.2
    """
    assert load(tmp_path, text) == AgentConfig(
        ads="unix:///run/istiod.sock",
        instance="one",
        run_dir=Path("/run/other"),
        envoy=EnvoyConfig(Path("/bin/envoy"), 2, "off"),
        mtls_endpoints=MtlsEndpoints.PLAINTEXT,
        log=LogConfig("debug", LogFormat.JSON),
        address=ipaddress.IPv4Address("127.64.1.2"),
    )


def test_the_run_directory_is_the_instance_s(tmp_path: Path) -> None:
    assert load(tmp_path, "{instance: one, source: {ads: 'a:1'}}").run_dir == Path("/run/xlb/one")


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("", "source.ads", "HOST:PORT"),
        ("[1, 2]", "", "must be a mapping"),
        ("source: 127.0.0.1:15010", "source", "must be a mapping (NAME: VALUE lines), not text"),
        ("source: {ads: 15010}", "source.ads", "must be text, not a number"),
        ("source: {ads: nowhere}", "source.ads", "use HOST:PORT"),
        ("source: {ads: 'a:70000'}", "source.ads", "use HOST:PORT"),
        ("source: {adds: 'a:1'}", "source.adds", "there is no such field: remove it, or use one of ads"),
        ("sauce: {ads: 'a:1'}", "sauce", "there is no such field"),
        ("{source: {ads: 'a:1'}, instance: 'No Name'}", "instance", "lower-case letters"),
        ("{source: {ads: 'a:1'}, run_dir: here}", "run_dir", "begin it with /"),
        ("{source: {ads: 'a:1'}, envoy: {concurrency: many}}", "envoy.concurrency", "must be a whole number"),
        ("{source: {ads: 'a:1'}, envoy: {concurrency: true}}", "envoy.concurrency", "not true/false"),
        ("{source: {ads: 'a:1'}, envoy: {concurrency: 0}}", "envoy.concurrency", "use 1 to 256"),
        ("{source: {ads: 'a:1'}, envoy: {log_level: loud}}", "envoy.log_level", "use one of trace, debug"),
        ("{source: {ads: 'a:1'}, mtls_endpoints: maybe}", "mtls_endpoints", "use one of refuse, plaintext"),
        ("{source: {ads: 'a:1'}, log: {format: xml}}", "log.format", "use one of keyvalue, json"),
        ("{source: {ads: 'a:1'}, address: 10.0.0.1}", "address", "127.0.0.0/8"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, field: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'xlb.yaml'}: {field}")
    assert remedy in line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file or directory\): name a readable file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="is not YAML: line 2: "):
        load(tmp_path, "a: 1\n: : :\n  - }")
