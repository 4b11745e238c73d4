"""`xlb exec`: register a workload with the agent, join its cgroup, become the command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from xlb.client import AdminClient, ClientError

WAIT_S: Final = 5.0
_ATTEMPTS: Final = 3


class RunError(Exception):
    """The command cannot be run; one line that says what to do, and the exit code."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """What to register; None: what is registered already decides."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    service_account: str | None
    ip: str | None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def document(self, wait: float) -> dict[str, Any]:
        said = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": dict(self.labels),
            "service_account": self.service_account,
            "ip": self.ip,
            "annotations": dict(self.annotations),
            "wait": wait,
        }
        return {key: value for key, value in said.items() if value is not None}


def join(client: AdminClient, request: Request, wait: float) -> str | None:
    """Put this process into the workload's cgroup.

    :param wait: seconds to wait for its first configuration
    :returns: a warning, if that is not in force yet
    Raises ClientError or RunError.
    """
    for attempt in range(_ATTEMPTS):
        told = client.post("workloads", request.document(wait), wait)
        try:
            Path(told["cgroup"], "cgroup.procs").write_text("0\n")
        except FileNotFoundError:
            # It was removed in between, since nothing ran in it.
            if attempt + 1 < _ATTEMPTS:
                continue
            raise RunError(f"the cgroup {told['cgroup']} is gone: is the agent ending?") from None
        except OSError as error:
            raise RunError(f"cannot join the cgroup {told['cgroup']} ({error.strerror}): run this as root") from None
        return None if told["in_force"] or not wait else _warning(request, told)
    raise AssertionError("the last attempt returns or raises")


def _warning(request: Request, told: Mapping[str, Any]) -> str:
    why = f"{told['error']}; {told['remedy']}" if told.get("error") else f"nothing complete came from {told['source']}"
    return f"{request.name} runs without the mesh until its configuration has come ({why})"


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process.  Raises RunError, with the codes that shells use."""
    try:
        os.execvp(command[0], list(command))
    except FileNotFoundError:
        raise RunError(f"{command[0]}: command not found", 127) from None
    except OSError as error:
        raise RunError(f"{command[0]}: {error.strerror}", 126) from None


__all__ = ["WAIT_S", "ClientError", "Request", "RunError", "become", "join"]
