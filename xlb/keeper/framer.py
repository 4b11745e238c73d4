"""Where an HTTP/1.1 message ends, in Python: goes on from the state in which the kernel's framer stopped.

A copy of bpf/include/xlb_frame.h, as strict, with the same states; used for messages that leave the kernel's way in the
middle: a response whose client reads slowly, a request body whose backend does.
"""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final, Protocol


class Phase(IntEnum):
    """enum xlb_phase; `records.Codes.read` compares them with the object at start."""

    START = 0
    NAME = 1
    VALUE = 2
    BODY = 3
    CHUNK_SIZE = 4
    CHUNK = 5
    TRAILER = 6
    UNTIL_CLOSE = 7
    TUNNEL = 8
    DONE = 9
    ERROR = 10


class Flag(IntFlag):
    """enum xlb_frame_flags."""

    LENGTH = 1
    CHUNKED = 2
    CLOSE = 4
    HEAD = 8
    KEEP_ALIVE = 16
    HTTP10 = 32


class FrameState(Protocol):
    """struct xlb_frame"""

    @property
    def phase(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def name(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def rest(self) -> int: ...


# Bits of `name` (enum xlb_frame_name), of `token` (xlb_frame_option) and values of `column` (xlb_frame_column).
_LENGTH, _CODING, _CONNECTION, _ALL_NAMES = 1, 2, 4, 7
_CLOSE, _KEEP_ALIVE, _OPTION_ENDED, _ALL_OPTIONS = 1, 2, 4, 3
_STATUS, _REASON, _LONG, _BEGUN, _ENDED, _EXTENSION, _BLANK, _CR = 12, 13, 32, 1, 2, 64, 65, 128
_MOST: Final = 1 << 62  # XLB_FRAME_MAX
_MOST_DIGITS: Final = 16

_NAMES: Final = ((_LENGTH, b"content-length"), (_CODING, b"transfer-encoding"), (_CONNECTION, b"connection"))
_OPTIONS: Final = ((_CLOSE, b"close"), (_KEEP_ALIVE, b"keep-alive"))
_VERSION: Final = b"HTTP/1."
_CODING_NAME: Final = b"chunked"
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})\r\n")
_CR_BYTE, _LF, _TAB, _SPACE, _COLON, _COMMA, _SEMICOLON, _DELETE = 13, 10, 9, 32, 58, 44, 59, 127
_HEX: Final = {byte: int(chr(byte), 16) for byte in b"0123456789abcdefABCDEF"}


def _letter(word: bytes, column: int) -> int:
    """The byte there; behind the end 0, which no header has."""
    return word[column] if column < len(word) else 0


def _lower(byte: int) -> int:
    return byte | 0x20 if 65 <= byte <= 90 else byte


class Framer:
    """State of one message.  Fields as in struct xlb_frame."""

    __slots__ = ("_data", "_to_head", "column", "flags", "name", "phase", "rest", "status", "token")

    def __init__(self, state: FrameState, to_head: bool) -> None:
        """:param to_head: it is the response to a HEAD request"""
        self.phase = state.phase
        self.flags = state.flags
        self.status = state.status
        self.name = state.name
        self.token = state.token
        self.column = state.column
        self.rest = state.rest
        self._to_head = to_head
        self._data: bytes | memoryview = b""

    @classmethod
    def of_response(cls, state: FrameState, to_head: bool) -> Framer:
        return cls(state, to_head)

    @classmethod
    def of_request(cls, state: FrameState) -> Framer:
        """Of the body of a request: its head was read by the kernel."""
        return cls(state, to_head=False)

    @property
    def to_head(self) -> bool:
        return self._to_head

    @property
    def is_done(self) -> bool:
        return self.phase == Phase.DONE

    @property
    def is_broken(self) -> bool:
        return self.phase == Phase.ERROR

    @property
    def ends_with_connection(self) -> bool:
        return self.phase in (Phase.UNTIL_CLOSE, Phase.TUNNEL)

    def feed(self, data: bytes | memoryview) -> int:
        """Go on with a piece of the stream.  :returns: how many of its bytes belong to the message"""
        self._data = data
        at, size = 0, len(data)
        while at < size:
            phase = Phase(self.phase)
            if phase == Phase.BODY:
                take = min(self.rest, size - at)
                self.rest -= take
                at += take
                if not self.rest:
                    self.phase = Phase.DONE
            elif phase == Phase.CHUNK and self.rest > 2:
                take = min(self.rest - 2, size - at)
                self.rest -= take
                at += take
            elif phase in (Phase.UNTIL_CLOSE, Phase.TUNNEL):
                at = size
            elif phase in (Phase.DONE, Phase.ERROR):
                break
            else:
                at += _STEPS[phase](self, at)
        self._data = b""
        return at

    # ---- steps: each takes some bytes from `at` on and tells how many

    def _go(self, phase: Phase, column: int = 0) -> None:
        self.phase = phase
        self.column = column
        self.name = _ALL_NAMES
        self.token = 0

    def _fail(self) -> int:
        self.phase = Phase.ERROR
        return 1

    def _text(self, at: int) -> tuple[int, int]:
        """Skip what has no control characters but HTAB.  :returns: bytes taken, the control character behind or -1"""
        found = _CONTROL.search(self._data, at)
        if found is None:
            return len(self._data) - at, -1
        return found.end() - at, self._data[found.start()]

    def _start(self, at: int) -> int:
        column, c = self.column, self._data[at]
        if column == _REASON:
            taken, control = self._text(at)
            if control == _CR_BYTE:
                self.column = _CR
            elif control >= 0:
                self._fail()
            return taken
        if column == _CR:
            if c != _LF:
                return self._fail()
            self._go(Phase.NAME)
            return 1
        if column == 0:
            self.flags = self.status = self.rest = 0
        self.column = column + 1
        good = True
        if column < 7:
            good = c == _VERSION[column]
        elif column == 7:
            good = c in b"01"
            if c == 0x30:
                self.flags |= Flag.HTTP10
        elif column == 8:
            good = c == _SPACE
        elif column < _STATUS:
            good = (0x31 if column == 9 else 0x30) <= c <= 0x39
            self.status = self.status * 10 + c - 0x30
        elif c == _CR_BYTE:
            self.column = _CR
        else:
            good = c == _SPACE
        return 1 if good else self._fail()

    def _name(self, at: int) -> int:
        column, c = self.column, self._data[at]
        if column == _CR:
            if c != _LF:
                return self._fail()
            self._head_end()
            return 1
        if column == 0 and c == _CR_BYTE:
            self.column = _CR
            return 1
        if c == _COLON:
            if column == 0:
                return self._fail()
            self._colon(sum(bit for bit, name in _NAMES if self.name & bit and not _letter(name, column)))
            return 1
        if c not in _TOKEN:
            return self._fail()
        if self.name:
            c = _lower(c)
            self.name = sum(bit for bit, name in _NAMES if self.name & bit and _letter(name, column) == c)
        self.column = column + 1 if self.name else _LONG
        return 1

    def _colon(self, name: int) -> None:
        self.phase = Phase.VALUE
        self.column = 0
        self.name = name
        self.token = _ALL_OPTIONS if name == _CONNECTION else 0
        if (name & _LENGTH and self.flags & Flag.LENGTH) or (name & _CODING and self.flags & Flag.CHUNKED):
            self._fail()

    def _value(self, at: int) -> int:
        c = self._data[at]
        if self.column == _CR:
            if c != _LF:
                return self._fail()
            self._go(Phase.NAME)
            return 1
        if not self.name:
            taken, control = self._text(at)
            if control == _CR_BYTE:
                self.column = _CR
            elif control >= 0:
                self._fail()
            return taken
        if c == _CR_BYTE:
            if self.name & _CONNECTION:
                self._option_end()
            elif not self.column or (self.name & _CODING and self.token != len(_CODING_NAME)):
                return self._fail()
            else:
                self.flags |= Flag.CHUNKED if self.name & _CODING else Flag.LENGTH
            self.column = _CR
            return 1
        if c != _TAB and (c < _SPACE or c == _DELETE):
            return self._fail()
        if self.name & _CONNECTION:
            self._option(c)
        elif not self._word(c):
            return self._fail()
        return 1

    def _option(self, c: int) -> None:
        """A byte of the value of a connection header; `column` counts those of the option."""
        column = self.column
        if c == _COMMA:
            self._option_end()
        elif c in (_SPACE, _TAB):
            if column:
                self.token |= _OPTION_ENDED
        else:
            c = _lower(c)
            for bit, option in _OPTIONS:
                if self.token & _OPTION_ENDED or _letter(option, column) != c:
                    self.token &= ~bit
            self.column = min(column + 1, 16)

    def _option_end(self) -> None:
        for bit, option in _OPTIONS:
            if self.token & bit and self.column == len(option):
                self.flags |= Flag.CLOSE if bit == _CLOSE else Flag.KEEP_ALIVE
        self.token = _ALL_OPTIONS
        self.column = 0

    def _word(self, c: int) -> bool:
        """A byte of a content-length or transfer-encoding: one word with blanks around it.  False: it may not be."""
        if c in (_SPACE, _TAB):
            if self.column == _BEGUN:
                self.column = _ENDED
            return True
        if self.column == _ENDED:
            return False
        self.column = _BEGUN
        if self.name & _CODING:
            if _lower(c) != _letter(_CODING_NAME, self.token):
                return False
            self.token += 1
            return True
        if not 0x30 <= c <= 0x39 or self.rest > _MOST // 10:
            return False
        self.rest = self.rest * 10 + c - 0x30
        return self.rest <= _MOST

    def _head_end(self) -> None:
        """The empty line behind the header of a response."""
        flags = self.flags
        # RFC 9112, 6.1: a transfer coding in HTTP/1.0 is faulty framing, and so is one beside a length.
        if flags & Flag.CHUNKED and flags & (Flag.LENGTH | Flag.HTTP10):
            self._fail()
            return
        # As in xlb_frame.h: a status without a body must not say that it has one (RFC 9110, 8.6).
        if (self.status < 200 or self.status == 204) and (flags & Flag.CHUNKED or (flags & Flag.LENGTH and self.rest)):
            self._fail()
            return
        if self.status == 101:
            self.flags |= Flag.HEAD
            self.phase = Phase.TUNNEL
            return
        if self.status < 200:
            self.flags = self.status = self.rest = 0
            self._go(Phase.START)
            return
        if flags & Flag.HTTP10 and not flags & Flag.KEEP_ALIVE:
            flags |= Flag.CLOSE
        self.flags = flags | Flag.HEAD
        if self._to_head or self.status in (204, 304) or (flags & Flag.LENGTH and not self.rest):
            self.phase = Phase.DONE
        elif flags & Flag.CHUNKED:
            self.rest = 0
            self._go(Phase.CHUNK_SIZE)
        elif flags & Flag.LENGTH:
            self.phase = Phase.BODY
        else:
            self.flags |= Flag.CLOSE
            self.phase = Phase.UNTIL_CLOSE

    def _chunk(self, at: int) -> int:
        """The end of line behind a chunk."""
        if self._data[at] != (_CR_BYTE if self.rest == 2 else _LF):
            return self._fail()
        self.rest -= 1
        if not self.rest:
            self._go(Phase.CHUNK_SIZE)
        return 1

    def _chunk_size(self, at: int) -> int:
        column, c = self.column, self._data[at]
        if column == 0 and not self.rest:
            line = _CHUNK_LINE.match(self._data, at)
            if line is not None:  # nearly always
                self.rest = int(line[1], 16)
                self._chunk_begins()
                return line.end() - at
        if column == _EXTENSION:
            taken, control = self._text(at)
            if control == _CR_BYTE:
                self.column = _CR
            elif control >= 0:
                self._fail()
            return taken
        if column == _CR:
            if c != _LF:
                return self._fail()
            self._chunk_begins()
            return 1
        digit = _HEX.get(c)
        if digit is not None:
            if column >= _MOST_DIGITS or self.rest > _MOST // 16 - 1:
                return self._fail()
            self.rest = self.rest * 16 + digit
            self.column = column + 1
        elif column and c == _CR_BYTE:
            self.column = _CR
        elif column and c == _SEMICOLON:
            self.column = _EXTENSION
        elif column and c in (_SPACE, _TAB):
            self.column = _BLANK
        else:
            return self._fail()
        return 1

    def _chunk_begins(self) -> None:
        if self.rest:
            self.rest += 2
            self._go(Phase.CHUNK)
        else:
            self._go(Phase.TRAILER)

    def _trailer(self, at: int) -> int:
        """Trailers are framed, not read."""
        column, c = self.column, self._data[at]
        if column == _BEGUN:
            taken, control = self._text(at)
            if control == _CR_BYTE:
                self.column = _CR | _BEGUN
            elif control >= 0:
                self._fail()
            return taken
        if column & _CR:
            if c != _LF:
                return self._fail()
            if column & _BEGUN:
                self.column = 0
            else:
                self.phase = Phase.DONE
        elif c == _CR_BYTE and not column:
            self.column = _CR
        elif c == _COLON and column:
            self.column = _BEGUN
        elif c in _TOKEN:
            self.column = _LONG
        else:
            return self._fail()
        return 1


_STEPS: Final = MappingProxyType(
    {
        Phase.START: Framer._start,
        Phase.NAME: Framer._name,
        Phase.VALUE: Framer._value,
        Phase.CHUNK_SIZE: Framer._chunk_size,
        Phase.CHUNK: Framer._chunk,
        Phase.TRAILER: Framer._trailer,
    }
)
