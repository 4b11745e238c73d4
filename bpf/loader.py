"""The data path of one instance in the kernel: loaded, attached, pinned, opened again, removed.

Pins are in /sys/fs/bpf/xlb-INSTANCE: maps by their name, programs as prog_NAME, links as link_NAME, and, because bpffs
has no files, an empty folder object_SHA256 that says which object all of this came from.  It is made last: pins without
it are what a loader left that did not come to its end.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from ctypes import byref, c_uint32
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import structlog

from bpf import layout
from bpf.layout import INSTALLED, LayoutError, Layouts
from bpf.libbpf import AttachType, BpfError, CgroupLinkInfo, MapKind, ProgramKind, check, info, libbpf
from bpf.maps import Map, create_map
from bpf.objects import BpfObject, LoadError
from bpf.program import Program

__all__ = ["DataPath", "LoadError", "mount_bpffs", "pin_folder", "remove"]

BPFFS: Final = Path("/sys/fs/bpf")
SOCKETS: Final = "xlb_sockets"  # the map that sk_msg programs are attached to
KEEPER_POOL_DEPTH: Final = 64  # idle connections to Envoy for one (view, original destination)

_PROGRAM: Final = "prog_"
_LINK: Final = "link_"
_OBJECT: Final = "object_"
_CGROUP_KINDS: Final = frozenset({ProgramKind.SOCK_OPS, ProgramKind.CGROUP_SOCKOPT, ProgramKind.CGROUP_SOCK_ADDR})
# A socket takes over the sk_msg program when it is put into the map, so that comes first; captures come last, when all
# that a captured connection needs is in place.
_ATTACH_ORDER: Final = MappingProxyType(
    {
        ProgramKind.SYSCALL: 0,  # run, not attached
        ProgramKind.SK_MSG: 1,
        ProgramKind.SOCK_OPS: 2,
        ProgramKind.CGROUP_SOCKOPT: 3,
        ProgramKind.CGROUP_SOCK_ADDR: 4,
    }
)
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def pin_folder(instance: str) -> Path:
    """Where an instance is pinned.  Raises LoadError for a name that bpffs or a cgroup cannot have."""
    # bpffs reserves names with a dot.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", instance):
        raise LoadError(f"instance name {instance!r}: use letters, digits, - and _ (at most 63)")
    return BPFFS / f"xlb-{instance}"


def mount_bpffs() -> None:
    """Mount bpffs at /sys/fs/bpf if it is not there.  Raises LoadError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if where == str(BPFFS) and kind == "bpf":
            return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", bytes(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        why = os.strerror(ctypes.get_errno())
        raise LoadError(f"cannot mount bpffs at {BPFFS} ({why}): run as root, or `mount -t bpf bpf {BPFFS}` before")


class DataPath:
    """The pinned maps and programs of an instance.  Maps and programs it gives stay its own: close() closes them."""

    def __init__(self, instance: str, layouts: Layouts) -> None:
        """Use load() or open()."""
        self.pin_folder = pin_folder(instance)
        self.instance = instance
        self.layouts = layouts
        self._maps: dict[str, Map] = {}
        self._programs: dict[str, Program] = {}

    @classmethod
    def load(cls, instance: str, cgroup: Path, *, obj: Path | None = None, stamp: Path | None = None) -> Self:
        """Take over the instance's data path if it is there whole and from this object, else load and attach it.

        :param cgroup: the instance's own cgroup; programs see the sockets of it and of all below it
        :param obj: the compiled object; None: the one that comes with this package
        :param stamp: a file to write the object's sha256 to, for people; the pins have their own
        Raises LoadError.  If the object is refused, what was there stays; otherwise nothing does.
        """
        path = obj or INSTALLED
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise LoadError(f"{path}: {error.strerror}: run `make build`") from error
        found = cls(instance, _layouts(obj))
        _check_cgroup(cgroup)
        mount_bpffs()
        try:
            with BpfObject(path) as opened:
                for name, kind in opened.programs.items():
                    if kind not in _ATTACH_ORDER:
                        raise LoadError(f"program {name}: the loader attaches no programs of type {kind.name}")
                stale = found._stale(opened, digest, cgroup)
                if stale is None:
                    _log.info("data path taken over", instance=instance, object=digest[:12])
                else:
                    opened.load()  # before anything is removed: what the verifier refuses must not cost what works
                    found.close()
                    if found.pin_folder.exists():
                        _log.warning("data path is replaced, connections through it end", reason=stale)
                        remove(instance)
                    found._put_in_place(opened, digest, cgroup)
            if stamp is not None:
                stamp.write_text(f"{digest}\n")
        except OSError as error:
            found.close()
            raise LoadError(f"data path {instance}: {error.strerror}") from error
        except BaseException:
            found.close()
            raise
        return found

    @classmethod
    def open(cls, instance: str, *, obj: Path | None = None) -> Self:
        """The data path that an agent has loaded.  Raises LoadError if there is none or it is of another version."""
        found = cls(instance, _layouts(obj))
        folder = found.pin_folder
        if not any(name.startswith(_OBJECT) for name in _names(folder)):
            raise LoadError(f"no data path at {folder}: start the agent of instance {instance} first")
        try:
            version, wanted = found._version(), found.layouts.constants()["XLB_LAYOUT_VERSION"]
        except BpfError as error:
            found.close()
            raise LoadError(f"data path {folder}: {error.strerror}: restart the agent of {instance}") from error
        if version != wanted:
            found.close()
            raise LoadError(f"data path {folder} has layout {version}, not {wanted}: restart the agent of {instance}")
        return found

    def map(self, name: str) -> Map:
        """A pinned map, the same object for the same name.  Raises BpfError."""
        if name not in self._maps:
            self._maps[name] = Map.open(self.pin_folder / name)
        return self._maps[name]

    def program(self, name: str) -> Program:
        """A pinned program, the same object for the same name.  Raises BpfError."""
        if name not in self._programs:
            self._programs[name] = Program.open(self.pin_folder / f"{_PROGRAM}{name}")
        return self._programs[name]

    def programs(self) -> list[tuple[str, ProgramKind, int]]:
        """Name, type and number of instructions the verifier walked, of every program by name.  Raises BpfError."""
        names = [name.removeprefix(_PROGRAM) for name in _names(self.pin_folder) if name.startswith(_PROGRAM)]
        facts = {name: self.program(name).facts() for name in sorted(names)}
        return [(name, fact.kind, fact.verified_instructions) for name, fact in facts.items()]

    def remove(self) -> None:
        """Detach and unpin everything; what nobody else holds is freed.  Again: nothing.  Raises LoadError."""
        self.close()
        remove(self.instance)

    def close(self) -> None:
        """Close all maps and programs; the data path stays in the kernel."""
        for opened in self._maps.values():
            opened.close()
        for program in self._programs.values():
            program.close()
        self._maps.clear()
        self._programs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- loading

    def _version(self) -> int:
        """XLB_LAYOUT_VERSION of the pinned maps; 0 if they have none."""
        config: Any = self.layouts.struct("xlb_config")
        raw = self.map("xlb_config").lookup(bytes(4))
        return config.from_buffer_copy(raw).layout if raw and len(raw) == ctypes.sizeof(config) else 0

    def _stale(self, opened: BpfObject, digest: str, cgroup: Path) -> str | None:
        """Why the pins cannot be taken over as they are; None: they can."""
        names = _names(self.pin_folder)
        if not names:
            return "not loaded"
        if f"{_OBJECT}{digest}" not in names:
            return "it is of another object" if any(n.startswith(_OBJECT) for n in names) else "it is incomplete"
        kinds = opened.programs
        expected = {*opened.maps, *(f"{_PROGRAM}{name}" for name in kinds)}
        links = {name for name, kind in kinds.items() if kind in _CGROUP_KINDS}
        expected |= {f"{_LINK}{name}" for name in links}
        if missing := expected - names:
            return f"the pin of {min(missing)} is missing"
        try:
            if self._version() != self.layouts.constants()["XLB_LAYOUT_VERSION"]:
                return "it has another layout version"
            group = cgroup.stat().st_ino  # a cgroup's id is its inode number
            for name in sorted(links):
                if _linked_cgroup(self.pin_folder / f"{_LINK}{name}") != group:
                    return f"{name} is attached to another cgroup, or to one that is gone"
            if any(kind is ProgramKind.SK_MSG for kind in kinds.values()) and not _verdicts(self.map(SOCKETS)):
                return f"no sk_msg program is attached to {SOCKETS}"
        except BpfError as error:
            self.close()
            return f"it cannot be read ({error.strerror})"
        return None

    def _put_in_place(self, opened: BpfObject, digest: str, cgroup: Path) -> None:
        """Pin and attach a loaded object; on any failure nothing stays.  Raises LoadError, OSError."""
        try:
            self.pin_folder.mkdir(mode=0o700)
            for name in opened.maps:
                with opened.map(name) as made:
                    _pin(made.fd, self.pin_folder / name)
            for name in opened.programs:
                _pin(opened.program_fd(name), self.pin_folder / f"{_PROGRAM}{name}")
            self._fill()
            self._attach(opened, cgroup)
            (self.pin_folder / f"{_OBJECT}{digest}").mkdir(mode=0o700)
        except BaseException:
            self.remove()
            raise
        _log.info("data path loaded", instance=self.instance, object=digest[:12])

    def _attach(self, opened: BpfObject, cgroup: Path) -> None:
        descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, kind in sorted(opened.programs.items(), key=lambda item: _ATTACH_ORDER[item[1]]):
                if kind is ProgramKind.SK_MSG:
                    sockets = self.map(SOCKETS).fd
                    program = opened.program_fd(name)
                    check(libbpf().bpf_prog_attach(program, sockets, AttachType.SK_MSG_VERDICT, 0), f"attach {name}")
                elif kind in _CGROUP_KINDS:
                    opened.attach_to_cgroup(name, descriptor, self.pin_folder / f"{_LINK}{name}")
        finally:
            os.close(descriptor)

    def _fill(self) -> None:
        """What the programs and the keeper rely on from the start."""
        constants = self.layouts.constants()
        config: Any = self.layouts.struct("xlb_config")
        self.map("xlb_config").update(bytes(4), bytes(config(layout=constants["XLB_LAYOUT_VERSION"])))

        # The last pools belong to the keeper, which gives them out at run time and must not have to make maps then.
        last = constants["XLB_MAX_POOLS"]
        numbers = range(last - constants["XLB_DESTINATIONS"], last)
        stacks: list[Map] = []
        try:
            stacks.extend(create_map(MapKind.STACK, "xlb_idle", 0, 8, KEEPER_POOL_DEPTH) for _ in numbers)
            self.map("xlb_pools").update_batch(
                [bytes(c_uint32(number)) for number in numbers], [bytes(c_uint32(stack.fd)) for stack in stacks]
            )
        finally:
            for stack in stacks:
                stack.close()


def remove(instance: str) -> None:
    """Detach and unpin an instance's data path, whole or not; none: nothing.  Raises LoadError."""
    folder = pin_folder(instance)
    names = _names(folder)
    try:
        # Captures first (link_xlb_connect4 sorts first), so that nothing new comes in while the rest goes.
        for name in sorted(name for name in names if name.startswith(_LINK)):
            _detach(folder / name)
        if SOCKETS in names:
            with Map.open(folder / SOCKETS) as sockets:
                for program in _verdicts(sockets):
                    with Program.from_id(program) as attached:
                        code = libbpf().bpf_prog_detach2(attached.fd, sockets.fd, AttachType.SK_MSG_VERDICT)
                        check(code, f"detach from {SOCKETS}")
        for name in names:
            if name.startswith(_OBJECT):
                (folder / name).rmdir()
            else:
                (folder / name).unlink()
        if folder.exists():
            folder.rmdir()
    except OSError as error:
        raise LoadError(f"cannot remove {folder}: {error.strerror}") from error


def _names(folder: Path) -> frozenset[str]:
    """What is pinned; nothing if there is no such folder."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise LoadError(f"cannot read {folder}: {error.strerror}: run as root") from error


def _layouts(obj: Path | None) -> Layouts:
    try:
        return layout.installed() if obj is None else layout.load(obj)
    except LayoutError as error:
        raise LoadError(str(error)) from error


def _check_cgroup(cgroup: Path) -> None:
    """Refuse what is no cgroup, and a root, whose programs would see every socket of the machine.  Raises LoadError."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"]
    resolved = cgroup.resolve()
    if not any(root in resolved.parents for root in roots) or not (resolved / "cgroup.procs").exists():
        where = ", ".join(str(root) for root in roots) or "cgroup2, which is not mounted"
        raise LoadError(f"{cgroup} is not a cgroup below {where}: make one for the instance")


def _pin(descriptor: int, path: Path) -> None:
    check(libbpf().bpf_obj_pin(descriptor, bytes(path)), f"pin {path}")


def _linked_cgroup(path: Path) -> int:
    """Id of the cgroup of a pinned link; 0: it is gone.  Raises BpfError."""
    descriptor = check(libbpf().bpf_obj_get(bytes(path)), f"open {path}")
    try:
        found = CgroupLinkInfo()
        info(descriptor, found, f"read link info of {path}")
        group: int = found.cgroup_id
        return group
    finally:
        os.close(descriptor)


def _detach(path: Path) -> None:
    """Detach a pinned link, even if somebody else holds it open.  Raises BpfError."""
    descriptor = check(libbpf().bpf_obj_get(bytes(path)), f"open {path}")
    try:
        check(libbpf().bpf_link_detach(descriptor), f"detach {path}")
    finally:
        os.close(descriptor)


def _verdicts(sockets: Map) -> list[int]:
    """Ids of the sk_msg programs attached to a socket map: one or none.  Raises BpfError."""
    ids, count = (c_uint32 * 1)(), c_uint32(1)
    code = libbpf().bpf_prog_query(sockets.fd, AttachType.SK_MSG_VERDICT, 0, None, ids, byref(count))
    check(code, f"query the programs of {sockets.name}")
    return list(ids[: count.value])
