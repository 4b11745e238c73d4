"""The admin socket: HTTP with JSON over RUN_DIR/admin.sock, for root only."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import structlog
from aiohttp import web

from bpf.libbpf import BpfError
from xds_server.grpc_options import claim_unix_path
from xlb import documents
from xlb.agent import Agent
from xlb.bypass import BypassError
from xlb.bypass import from_document as bypass_from_document
from xlb.cgroups import CgroupError
from xlb.documents import Document
from xlb.identity import DEFAULT_NAMESPACE, IdentityError, from_document
from xlb.keeper_process import KeeperError
from xlb.numbers import OutOfNumbers

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_WAIT_S: Final = 300.0
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """Answers as long as it is started."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._version = _version()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises OSError if the socket cannot be made."""
        app = web.Application(middlewares=[_errors])
        for path, handler in (
            ("/status", self._status),
            ("/routes", self._routes),
            ("/clusters", self._clusters),
            ("/endpoints", self._endpoints),
            ("/workloads", self._workloads),
            ("/explain", self._explain),
            ("/top", self._top),
            ("/bypasses", self._bypasses),
        ):
            app.router.add_get(path, handler)
        app.router.add_post("/workloads", self._register)
        app.router.add_post("/bypasses", self._bypass)
        app.router.add_post("/bypasses/remove", self._end_bypass)
        app.router.add_post("/upgrade", self._upgrade)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        socket_path = self._agent.paths.admin
        claim_unix_path(socket_path)
        before = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(socket_path)).start()
        finally:
            os.umask(before)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self._agent.paths.admin.unlink(missing_ok=True)

    async def _status(self, request: web.Request) -> web.Response:
        return _json(documents.status(self._agent, self._version))

    async def _routes(self, request: web.Request) -> web.Response:
        return _json(documents.routes(self._agent))

    async def _clusters(self, request: web.Request) -> web.Response:
        return _json(documents.clusters(self._agent))

    async def _endpoints(self, request: web.Request) -> web.Response:
        return _json(documents.endpoints(self._agent))

    async def _workloads(self, request: web.Request) -> web.Response:
        return _json(documents.workloads(self._agent))

    async def _top(self, request: web.Request) -> web.Response:
        return _json(await documents.top(self._agent, self._version))

    async def _explain(self, request: web.Request) -> web.Response:
        # The evaluator brings RE2 along, which nothing else of the agent needs.
        from xlb.explain import ExplainError, explain, request_of

        asked = request.query
        name = asked.get("from", "")
        view = self._agent.view_of(name, asked.get("namespace", DEFAULT_NAMESPACE))
        if view is None:
            return _error(404, f"no workload {name!r} is registered: see `xlb workloads`, or start one with `xlb exec`")
        if view.prepared is None:
            return _error(409, f"workload {name!r} has no configuration yet: see `xlb status`")
        headers = [(key, value) for key, _, value in (line.partition(":") for line in asked.getall("header", []))]
        rules = view.prepared.rules
        try:
            wanted = request_of(rules, asked.get("method", ""), asked.get("url", ""), headers)
        except ExplainError as error:
            return _error(400, str(error))
        told = await asyncio.to_thread(explain, rules, wanted)
        switched = documents.switched(self._agent, view, wanted.to, told)
        return _json({"view": view.name, "captured_folder": view.state.control_plane.id, **told, **switched})

    async def _bypasses(self, request: web.Request) -> web.Response:
        return _json(documents.bypasses(self._agent))

    async def _bypass(self, request: web.Request) -> web.Response:
        try:
            document = json.loads(await request.read())
            wanted = bypass_from_document(document)
        except (BypassError, ValueError) as error:
            return _error(400, str(error))
        try:
            left = await self._agent.bypass(wanted, established=document.get("established") is True)
        except BpfError as error:
            return _error(503, f"cannot switch: {error}")
        known = any(wanted.workload in (None, str(one.identity)) for one in self._agent.workloads)
        return _json({**wanted.document(), "text": str(wanted), "established": left, "known": known})

    async def _end_bypass(self, request: web.Request) -> web.Response:
        try:
            wanted = bypass_from_document(json.loads(await request.read()))
        except (BypassError, ValueError) as error:
            return _error(400, str(error))
        try:
            ended = await self._agent.end_bypass(wanted)
        except BpfError as error:
            return _error(503, f"cannot switch: {error}")
        if not ended:
            return _error(404, "there is no such bypass: see `xlb bypass list`")
        return _json(wanted.document())

    async def _register(self, request: web.Request) -> web.Response:
        try:
            document = json.loads(await request.read())
            wanted = from_document(document)
            wait = min(float(document.get("wait", 0.0)), _MAX_WAIT_S)
        except IdentityError as error:
            return _error(400, str(error))
        except (TypeError, ValueError):
            return _error(400, "a workload is a JSON object with a name")
        try:
            made = await self._agent.register(wanted, _peer(request))
        except (CgroupError, BpfError, OutOfNumbers) as error:
            return _error(503, f"cannot make the workload: {error}")
        in_force = await made.view.wait_in_force(wait)
        state = made.view.state
        return _json(
            {
                "cgroup": str(made.folder),
                "view": made.view.name,
                "in_force": in_force,
                "source": self._agent.settings.ads,
                "error": state.error,
                "remedy": state.remedy,
            }
        )

    async def _upgrade(self, request: web.Request) -> web.Response:
        try:
            part = json.loads(await request.read())["part"]
        except (KeyError, TypeError, ValueError):
            part = None
        if part != "keeper":
            return _error(400, 'an upgrade is a JSON object with "part": "keeper"')
        before = self._agent.parts.keeper.state.pid
        try:
            told = await self._agent.upgrade_keeper()
        except KeeperError as error:
            return _error(503, str(error))
        return _json({"part": part, "before": before, "pid": told["pid"], "took_over": told.get("took_over")})


@web.middleware
async def _errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {request.path}: {error.reason}")
    except Exception as error:  # told to who asked, and written down
        _log.exception("admin_failed", path=request.path)
        return _error(500, f"{type(error).__name__}: {error}: see the agent's log")


def _json(document: Document) -> web.Response:
    return web.Response(body=json.dumps(document).encode(), content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    return web.Response(status=status, body=json.dumps({"error": text}).encode(), content_type="application/json")


def _peer(request: web.Request) -> int:
    """The process at the other end; 0 if it cannot be told."""
    transport = request.transport
    connection: Any = None if transport is None else transport.get_extra_info("socket")
    if connection is None:
        return 0
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[0])


def _version() -> str:
    try:
        return version("xlb-mesh")
    except PackageNotFoundError:
        return "unknown"
