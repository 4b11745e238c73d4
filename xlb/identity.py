"""Who a workload is: what `xlb exec` asks for, and what decides about its view.  Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from xlb.annotations import AnnotationError, Redirection, redirection

DEFAULT_NAMESPACE: Final = "default"
DEFAULT_SERVICE_ACCOUNT: Final = "default"
DEFAULT_IP: Final = "127.0.0.1"
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class IdentityError(Exception):
    """One line that names the field and says what it may be."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload.  Workloads of one key have the same configuration: they are one view."""

    name: str
    namespace: str = DEFAULT_NAMESPACE
    labels: tuple[tuple[str, str], ...] = ()  # sorted
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    ip: str = DEFAULT_IP
    annotations: tuple[tuple[str, str], ...] = ()  # sorted; they do not change the configuration, only what is captured

    @property
    def key(self) -> str:
        """What decides about the configuration, as one line of text."""
        return json.dumps([self.namespace, self.name, self.service_account, self.ip, dict(self.labels)])

    @property
    def redirection(self) -> Redirection:
        """What the annotations say.  Raises AnnotationError, if `wanted` has not checked them."""
        return redirection(dict(self.annotations), dict(self.labels))

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
    annotations: tuple[tuple[str, str], ...] | None = None

    def fits(self, identity: Identity) -> bool:
        return (
            (self.namespace, self.name) == (identity.namespace, identity.name)
            and self.labels in (None, identity.labels)
            and self.service_account in (None, identity.service_account)
            and self.ip in (None, identity.ip)
            and self.annotations in (None, identity.annotations)
        )

    def identity(self) -> Identity:
        """The identity where nothing that is registered fits."""
        return Identity(
            self.name,
            self.namespace,
            self.labels or (),
            self.service_account or DEFAULT_SERVICE_ACCOUNT,
            self.ip or DEFAULT_IP,
            self.annotations or (),
        )


def wanted(
    name: str,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    service_account: str | None = None,
    ip: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Wanted:
    """Check what a user asks for.  Empty labels and annotations are none said.  Raises IdentityError."""
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
    try:
        redirection(annotations or {}, labels)
    except AnnotationError as error:
        raise IdentityError(str(error)) from None
    return Wanted(name, namespace, _sorted(labels), service_account, ip, _sorted(annotations))


def _sorted(items: Mapping[str, str] | None) -> tuple[tuple[str, str], ...] | None:
    return tuple(sorted(items.items())) if items else None


def from_document(document: Any) -> Wanted:
    """From the JSON that `xlb exec` sends.  Raises IdentityError."""
    if not isinstance(document, dict):
        raise IdentityError("a workload is a JSON object")

    def text(key: str) -> str | None:
        value = document.get(key)
        if value is not None and not isinstance(value, str):
            raise IdentityError(f"{key} must be text")
        return value

    def texts(key: str) -> dict[str, str]:
        found = document.get(key) or {}
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise IdentityError(f"{key} must be an object of text values")
        return found

    return wanted(
        text("name") or "",
        text("namespace"),
        texts("labels"),
        text("service_account"),
        text("ip"),
        texts("annotations"),
    )


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
