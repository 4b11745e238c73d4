"""Answers that the keeper gives by itself, byte for byte as Envoy 1.40 writes its own ("local replies")."""

from __future__ import annotations

import time
from enum import Enum
from typing import Final

_PREFIX: Final = "upstream connect error or disconnect/reset before headers. reset reason: "
# Not strftime's %a and %b: those follow the locale.
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Reply(Enum):
    """Status line and body."""

    TERMINATED = ("503 Service Unavailable", _PREFIX + "connection termination")
    """The upstream connection ended before a byte of the response (response flag UC)."""
    MALFORMED = ("502 Bad Gateway", _PREFIX + "protocol error")
    """What the upstream sent is not HTTP/1.1 (response flag UPE)."""

    def render(self, now: float, head: bool = False, close: bool = False) -> bytes:
        """The whole response.

        :param now: seconds since 1970
        :param head: the request's method is HEAD, so the body is not sent
        :param close: the connection ends with it
        """
        status, body = self.value
        lines = [
            f"HTTP/1.1 {status}",
            f"content-length: {len(body)}",
            "content-type: text/plain",
            f"date: {http_date(now)}",
            "server: envoy",
        ]
        if close:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n" + ("" if head else body)).encode()


def http_date(now: float) -> str:
    """IMF-fixdate (RFC 9110, 5.6.7) of a time in seconds since 1970."""
    t = time.gmtime(now)
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04} {clock} GMT"
