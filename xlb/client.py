"""The client of the admin socket: what the commands ask a running agent."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from xlb.unix_http import UnixConnection

DEFAULT_RUN_DIR: Final = Path("/run/xlb/default")
_TIMEOUT_S: Final = 10.0


class ClientError(Exception):
    """The agent does not answer, or refuses; one line that says what to do."""


def run_dir(given: Path | None) -> Path:
    """The run directory: as given, by XLB_RUN_DIR, or the default instance's."""
    return given or Path(os.environ.get("XLB_RUN_DIR") or DEFAULT_RUN_DIR)


class AdminClient:
    """One agent's admin socket."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "admin.sock"

    def get(self, what: str, query: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
        """The document WHAT: "status", "routes" ...  Raises ClientError."""
        words = urlencode([*query], errors="surrogateescape")
        return self._ask("GET", f"/{what}?{words}" if words else f"/{what}", None, _TIMEOUT_S)

    def post(self, what: str, document: dict[str, Any], wait: float = 0.0) -> dict[str, Any]:
        """Send a document; the answer may take `wait` seconds longer than usual.  Raises ClientError."""
        return self._ask("POST", f"/{what}", json.dumps(document).encode(), _TIMEOUT_S + wait)

    def _ask(self, method: str, path: str, body: bytes | None, timeout: float) -> dict[str, Any]:
        connection = UnixConnection(self._path, timeout)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            told = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError):
            raise ClientError(
                f"no agent answers at {self._path}: start `xlb agent`, or name its run directory with --run-dir"
            ) from None
        except PermissionError:
            raise ClientError(f"{self._path} is for root only: run this as root") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = str(error) or type(error).__name__
            raise ClientError(f"the agent at {self._path} does not answer ({why}): see its log") from None
        finally:
            connection.close()
        if not isinstance(told, dict):
            raise ClientError(f"{self._path} is not the admin socket of an agent")
        if response.status != 200:
            raise ClientError(str(told.get("error", f"the agent answered {response.status}")))
        return told
