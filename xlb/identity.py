"""Who a workload is: what `xlb exec` asks for, and what decides about its view.  Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

DEFAULT_NAMESPACE: Final = "default"
DEFAULT_SERVICE_ACCOUNT: Final = "default"
DEFAULT_IP: Final = "127.0.0.1"
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class IdentityError(Exception):
    """One line that names the field and says what it may be."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload.  Workloads of one identity have the same configuration: they are one view."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    labels: tuple[tuple[str, str], ...] = ()  # sorted
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    ip: str = DEFAULT_IP

    @property
    def key(self) -> str:
        """The identity as one line of text."""
        return json.dumps([self.namespace, self.name, self.service_account, self.ip, dict(self.labels)])

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; None: not said, so that what is registered already decides."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    labels: tuple[tuple[str, str], ...] | None = None
    service_account: str | None = None
    ip: str | None = None

    def fits(self, identity: Identity) -> bool:
        return (
            (self.namespace, self.name) == (identity.namespace, identity.name)
            and self.labels in (None, identity.labels)
            and self.service_account in (None, identity.service_account)
            and self.ip in (None, identity.ip)
        )

    def identity(self) -> Identity:
        """The identity where nothing that is registered fits."""
        return Identity(
            self.name,
            self.namespace,
            self.labels or (),
            self.service_account or DEFAULT_SERVICE_ACCOUNT,
            self.ip or DEFAULT_IP,
        )


def wanted(
    name: str,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    service_account: str | None = None,
    ip: str | None = None,
) -> Wanted:
    """Check what a user asks for.  Empty labels are none said.  Raises IdentityError."""
    if not _NAME.fullmatch(name):
        raise IdentityError(f"workload name {name!r}: use up to 100 letters, digits and inner . _ -")
    namespace = namespace or DEFAULT_NAMESPACE
    if not _NAMESPACE.fullmatch(namespace):
        raise IdentityError(f"namespace {namespace!r}: use up to 63 lower-case letters, digits and inner dashes")
    if service_account is not None and not _NAME.fullmatch(service_account):
        raise IdentityError(f"service account {service_account!r}: use letters, digits and inner . _ -")
    if ip is not None:
        try:
            ip = str(ipaddress.ip_address(ip))
        except ValueError:
            raise IdentityError(f"ip {ip!r} is not an IP address") from None
    return Wanted(name, namespace, tuple(sorted(labels.items())) if labels else None, service_account, ip)


def from_document(document: Any) -> Wanted:
    """From the JSON that `xlb exec` sends.  Raises IdentityError."""
    if not isinstance(document, dict):
        raise IdentityError("a workload is a JSON object")

    def text(key: str) -> str | None:
        value = document.get(key)
        if value is not None and not isinstance(value, str):
            raise IdentityError(f"{key} must be text")
        return value

    labels = document.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise IdentityError("labels must be an object of text values")
    return wanted(text("name") or "", text("namespace"), labels, text("service_account"), text("ip"))


def folder_name(identity: Identity, others: Iterable[str]) -> str:
    """The name of its cgroup: <namespace>.<name>, with a number where another identity of that name has it."""
    taken = frozenset(others)
    plain = f"{identity.namespace}.{identity.name}"
    number = 1
    name = plain
    while name in taken:
        number += 1
        name = f"{plain}+{number}"
    return name
