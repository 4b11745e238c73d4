"""What of a snapshot can be put in force when some of its resources are refused.  Pure.

A refused resource is replaced by its last good version, or left out if there is none, as the xDS protocol has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import Message

from translator.model import Rejected
from translator.node_scope import split_name
from xds_server.cache import Snapshot
from xds_server.resources import TypeUrl

M = TypeVar("M")


def without(snapshot: Snapshot, rejected: Iterable[Rejected], last: Snapshot | None) -> Snapshot:
    """The snapshot with each rejected resource as it is in `last`, the snapshot in force, or without it."""
    names: dict[str, set[str]] = {}
    for one in rejected:
        names.setdefault(one.type_url, set()).add(one.name)

    def kept(type_url: TypeUrl, new: Mapping[str, M], old: Mapping[str, M]) -> Mapping[str, M]:
        refused = names.get(type_url)
        if not refused:
            return new
        made = {name: message for name, message in new.items() if name not in refused}
        # The same version again is what was just refused.
        made.update({name: old[name] for name in refused if name in old and old[name] is not new.get(name)})
        return made

    before = last or Snapshot("")
    return replace(
        snapshot,
        clusters=kept(TypeUrl.CLUSTER, snapshot.clusters, before.clusters),
        endpoints=kept(TypeUrl.ENDPOINT, snapshot.endpoints, before.endpoints),
        listeners=kept(TypeUrl.LISTENER, snapshot.listeners, before.listeners),
        routes=kept(TypeUrl.ROUTE, snapshot.routes, before.routes),
    )


def blame(type_url: str, message: str, pushed: Mapping[str, Mapping[str, Message]]) -> dict[str, list[Rejected]]:
    """The resources that Envoy's refusal names, by view, under their names as received; empty if it names none.

    :param pushed: what Envoy was given: type URL -> name -> message
    """
    found: dict[str, list[Rejected]] = {}
    for name in pushed.get(type_url, {}):
        # A name may be part of another one: outbound|80||a and outbound|8080||ab.
        if re.search(rf"(?<![\w|~.-]){re.escape(name)}(?![\w|~-]|\.\w)", message):
            view, original = split_name(name)
            found.setdefault(view, []).append(Rejected(type_url, original, "", f"Envoy refuses it: {message}"))
    return found
