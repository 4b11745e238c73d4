"""The agent's configuration file: YAML in, one checked value out.

Every refusal is one line that names the file, the field and the remedy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

RUN_ROOT: Final = Path("/run/xlb")
DEFAULT_INSTANCE: Final = "default"
_INSTANCE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_ENVOY_LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical", "off")
_MAX_CONCURRENCY: Final = 256


class ConfigError(Exception):
    """One line: file, field, remedy."""


class MtlsEndpoints(Enum):
    """What becomes of endpoints that require mesh mTLS; the values are those of the file."""

    REFUSE = "refuse"
    PLAINTEXT = "plaintext"


class LogFormat(Enum):
    KEY_VALUE = "keyvalue"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """`binary` None: what `make setup` fetched, else the one in PATH."""

    binary: Path | None = None
    concurrency: int = 1
    log_level: str = "warning"


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str = "info"
    format: LogFormat = LogFormat.KEY_VALUE


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """`address` None: one of 127.64.0.0/10 that is derived from the instance's name."""

    ads: str
    instance: str = DEFAULT_INSTANCE
    run_dir: Path = RUN_ROOT / DEFAULT_INSTANCE
    envoy: EnvoyConfig = field(default_factory=EnvoyConfig)
    mtls_endpoints: MtlsEndpoints = MtlsEndpoints.REFUSE
    log: LogConfig = field(default_factory=LogConfig)
    address: ipaddress.IPv4Address | None = None


def load_config(path: Path) -> AgentConfig:
    """Read and check a file.  Raises ConfigError."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): name a readable file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text: write the configuration as YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {_place(error)}") from None
    return parse_config(document, str(path))


def parse_config(document: object, name: str) -> AgentConfig:
    """Check a parsed document.  `name` is what errors call the file.  Raises ConfigError."""
    top = _Section(document, name, "")
    top.only(("instance", "run_dir", "source", "envoy", "mtls_endpoints", "log", "address"))
    source = top.section("source")
    source.only(("ads",))
    envoy = top.section("envoy")
    envoy.only(("binary", "concurrency", "log_level"))
    log = top.section("log")
    log.only(("level", "format"))
    instance = top.text("instance", DEFAULT_INSTANCE)
    if not _INSTANCE.fullmatch(instance):
        top.refuse("instance", f"{instance!r} is no name: use up to 40 lower-case letters, digits and inner dashes")
    return AgentConfig(
        ads=_target(source),
        instance=instance,
        run_dir=top.path("run_dir") or RUN_ROOT / instance,
        envoy=EnvoyConfig(
            envoy.path("binary"),
            envoy.number("concurrency", 1, 1, _MAX_CONCURRENCY),
            envoy.choice("log_level", "warning", _ENVOY_LEVELS),
        ),
        mtls_endpoints=MtlsEndpoints(top.choice("mtls_endpoints", "refuse", [e.value for e in MtlsEndpoints])),
        log=LogConfig(
            log.choice("level", "info", _LOG_LEVELS),
            LogFormat(log.choice("format", "keyvalue", [f.value for f in LogFormat])),
        ),
        address=_loopback(top),
    )


def _target(source: _Section) -> str:
    target = source.text("ads", "")
    if not target:
        source.refuse("ads", "is missing: give the ADS server's HOST:PORT, such as 127.0.0.1:15010")
    if target.startswith("unix:///"):
        return target
    host, colon, port = target.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in host and host[0] != "["):
        source.refuse("ads", f"{target!r} is not an address: use HOST:PORT, [IPV6]:PORT or unix:///PATH")
    return target


def _loopback(top: _Section) -> ipaddress.IPv4Address | None:
    text = top.text("address", "")
    if not text:
        return None
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        top.refuse("address", f"{text!r} is not a loopback address: use one of 127.0.0.0/8, or leave it out")
    return address


class _Section:
    """One mapping of the document; what it hands out has the right type, or ConfigError is raised."""

    def __init__(self, value: object, name: str, path: str) -> None:
        self._name = name
        self._path = path
        if value is None:
            value = {}
        if not isinstance(value, dict):
            where = f"{name}: {path}" if path else name
            raise ConfigError(f"{where}: must be a mapping (NAME: VALUE lines), not {_kind(value)}")
        self._items: Mapping[Any, Any] = value

    def refuse(self, key: str, why: str) -> None:
        """Raises ConfigError, always."""
        raise ConfigError(f"{self._name}: {self._at(key)}: {why}")

    def only(self, known: Iterable[str]) -> None:
        names = tuple(known)
        for key in self._items:
            if key not in names:
                self.refuse(str(key), f"there is no such field: remove it, or use one of {', '.join(names)}")

    def section(self, key: str) -> _Section:
        return _Section(self._items.get(key), self._name, self._at(key))

    def text(self, key: str, default: str) -> str:
        value = self._items.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.refuse(key, f"must be text, not {_kind(value)}: put it in quotes")
        return str(value)

    def path(self, key: str) -> Path | None:
        text = self.text(key, "")
        if text and not text.startswith("/"):
            self.refuse(key, f"{text!r} is not an absolute path: begin it with /")
        return Path(text) if text else None

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self._items.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            self.refuse(key, f"{value} is out of range: use {low} to {high}")
        return int(value)

    def choice(self, key: str, default: str, allowed: Iterable[str]) -> str:
        names = tuple(allowed)
        # YAML reads a bare off as False; Envoy's level of that name is meant.
        value = "off" if self._items.get(key) is False and "off" in names else self.text(key, default)
        if value not in names:
            self.refuse(key, f"{value!r} is not known: use one of {', '.join(names)}")
        return value

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key


def _kind(value: object) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "a mapping", str: "text"}
    return names.get(type(value), type(value).__name__)


def _place(error: Exception) -> str:
    """What a YAML parser found, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return what if mark is None else f"line {mark.line + 1}: {what}"
