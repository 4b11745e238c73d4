"""What goes along while one view's resources are made fit for the node Envoy: its names, its options, what was changed.

Every name that Envoy keeps in one table for the whole process carries its view, since two views' names are the same
(`0.0.0.0_9080`, `outbound|9080||reviews...`) and mean different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from google.protobuf.message import Message

from translator.closed import Malformed
from translator.model import Rejected

SEPARATOR: Final = "~"


class MtlsEndpoints(Enum):
    """What becomes of endpoints that want mesh mTLS, for which a stock Envoy has no identity to show."""

    REFUSE = "refuse"  # they are left out: 503 UH where no other is left
    PLAINTEXT = "plaintext"  # they get plain bytes


@dataclass(frozen=True, slots=True)
class EnvoyOptions:
    """`system_ca` is the file on this node with the authorities that "the system's" means; None: there is none."""

    mtls_endpoints: MtlsEndpoints = MtlsEndpoints.REFUSE
    system_ca: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of thing that the node Envoy gets otherwise than it was received.

    `resources` are the names as received, with a remark in brackets where it helps.  `harmless`: no request is
    answered otherwise for it, and no telemetry is missing that XLB would give.
    """

    view: str
    what: str
    resources: tuple[str, ...]
    harmless: bool = False

    def __str__(self) -> str:
        shown = ", ".join(self.resources[:4])
        more = f" and {len(self.resources) - 4} more" if len(self.resources) > 4 else ""
        return f"view {self.view}: {self.what}: {shown}{more}"


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What the node Envoy gets: type URL -> name -> message, as `AdsServer.set_snapshot` takes it.

    Closed: every assignment and route configuration that is referred to is there, so nothing waits for ever.
    `rejected` are resources that cannot be served at all, under their names as received.
    """

    resources: Mapping[str, Mapping[str, Message]]
    changes: tuple[Change, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything that was replaced or dropped, one line for each kind; what can be felt comes first."""
        return tuple(str(change) for change in sorted(self.changes, key=lambda c: c.harmless))


class Report:
    """Collects what is changed, one `Change` for each kind."""

    def __init__(self, view: str) -> None:
        self._view = view
        self._changes: dict[tuple[str, bool], dict[str, None]] = {}
        self._rejected: list[Rejected] = []

    def note(self, what: str, resource: str, *, harmless: bool = False) -> None:
        self._changes.setdefault((what, harmless), {})[resource] = None

    def reject(self, type_url: str, name: str, error: Malformed) -> None:
        self._rejected.append(Rejected(type_url, name, error.field, error.why))

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(Change(self._view, what, tuple(names), free) for (what, free), names in self._changes.items())

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        return tuple(self._rejected)


@dataclass(frozen=True, slots=True)
class Scope:
    """One view, and the resource of it that is being worked on.

    `clusters` are the names, as received, of those that Envoy will have.
    """

    view: str
    options: EnvoyOptions
    report: Report
    clusters: frozenset[str] = field(default=frozenset(), repr=False)
    resource: str = ""

    def at(self, resource: str) -> Scope:
        return replace(self, resource=resource)

    def note(self, what: str, remark: str = "", *, harmless: bool = False) -> None:
        """Report a change of the resource being worked on."""
        shown = f"{self.resource} ({remark})" if remark else self.resource
        self.report.note(what, shown, harmless=harmless)

    def name(self, original: str) -> str:
        """The name Envoy gets; "" stays "", which in xDS means unset."""
        return f"{self.view}{SEPARATOR}{original}" if original else ""

    def existing(self, cluster: str, path: str) -> str:
        """The name of a cluster where Envoy refuses a resource if there is none.

        :raises Malformed: if the view has none of that name
        """
        if cluster not in self.clusters:
            raise Malformed(path, f"there is no cluster {cluster!r} in this view")
        return self.name(cluster)


def check_view(view: str) -> None:
    """:raises ValueError: for a view's name that could not be told from what it is put before"""
    if not view or SEPARATOR in view:
        raise ValueError(f"a view's name must not be empty or contain {SEPARATOR!r}: {view!r}")


def split_name(name: str) -> tuple[str, str]:
    """The view and the name as received, from a name that Envoy uses (in its admin output, logs, statistics).

    :raises ValueError: if it carries no view
    """
    view, separator, original = name.partition(SEPARATOR)
    if not separator or not view:
        raise ValueError(f"{name!r} carries no view")
    return view, original
