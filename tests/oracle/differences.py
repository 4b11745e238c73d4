"""How an answer that the kernel carried differs from Envoy's, by design: the one list of it.

`docs/differences.md` is written from here (`python -m tests.oracle.differences`, checked by a test), and the judge
forgives these and no others, and only to requests that the kernel carried.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "differences.md"


class Side(Enum):
    """Whose headers differ."""

    REQUEST = "request, as the backend sees it"
    RESPONSE = "response, as the client sees it"


@dataclass(frozen=True, slots=True)
class Difference:
    """A header that Envoy adds or changes and the kernel does not.

    `recorded`: it is in the recorded answers, so the judge takes it out of them; the others were left out of the
    recordings already.
    """

    side: Side
    header: str
    envoy: str
    kernel: str
    why: str
    recorded: bool = False


_SAME_BYTES: Final = "the bytes of a message are moved, not rewritten: a header cannot be inserted"

DIFFERENCES: Final = (
    Difference(
        Side.REQUEST,
        "x-envoy-attempt-count",
        "adds it: 1 for a request that was not retried",
        "is absent",
        f"{_SAME_BYTES}; it would always be 1, a request that may have to be sent twice is Envoy's",
        recorded=True,
    ),
    Difference(
        Side.REQUEST,
        "x-request-id",
        "adds a random one if there is none",
        "only the client's own",
        f"{_SAME_BYTES}; applications that trace set it themselves",
    ),
    Difference(
        Side.REQUEST,
        "x-forwarded-proto",
        "adds http",
        "only the client's own",
        _SAME_BYTES,
    ),
    Difference(
        Side.REQUEST,
        "content-length",
        "adds 0 to a request without a body whose method is not GET, HEAD, DELETE or CONNECT",
        "only the client's own",
        f"{_SAME_BYTES}; without it the body is empty all the same (RFC 9112, section 6.3)",
        recorded=True,
    ),
    Difference(
        Side.REQUEST,
        "referer",
        "drops one that is no URL, or has a fragment or a user in it",
        "passes on what the client wrote",
        f"{_SAME_BYTES}; rules that look at it are Envoy's",
    ),
    Difference(
        Side.REQUEST,
        "connection, keep-alive",
        "drops them: they are between two hops",
        "are passed on, but for a `connection: close` of the client, whose value is blanked",
        f"{_SAME_BYTES}; what they ask for holds on the pooled connection too",
    ),
    Difference(
        Side.REQUEST,
        "(names and order)",
        "writes names in lower case, its own headers last",
        "names and order as the client wrote them",
        "names are compared without regard to case (RFC 9110, section 5.1)",
    ),
    Difference(
        Side.RESPONSE,
        "server",
        "sets envoy",
        "the backend's own, or none",
        _SAME_BYTES,
        recorded=True,
    ),
    Difference(
        Side.RESPONSE,
        "date",
        "adds one if the backend sent none",
        "only the backend's own",
        _SAME_BYTES,
    ),
    Difference(
        Side.RESPONSE,
        "x-envoy-upstream-service-time",
        "adds the milliseconds the backend took",
        "is absent",
        _SAME_BYTES,
    ),
)


def forgiven(side: Side) -> frozenset[str]:
    """Headers in the recordings that a request carried by the kernel may lack."""
    return frozenset(d.header for d in DIFFERENCES if d.side is side and d.recorded)


def document() -> str:
    """The text of docs/differences.md."""
    lines = [
        "# Where an answer of the kernel differs from Envoy's",
        "",
        "<!-- written by `python -m tests.oracle.differences`: change tests/oracle/differences.py, not this file -->",
        "",
        "A request carried by the kernel takes the same route to the same cluster, with the same path and body, as by",
        "Envoy. These headers differ, by design; `xlb explain` tells which of the two carries a request. Nothing else",
        "may differ: the oracle tests forgive what stands here, and only to requests that the kernel carried.",
    ]
    for side in Side:
        lines += ["", f"## {side.value.capitalize()}", "", "| header | Envoy | kernel | why |", "|---|---|---|---|"]
        lines += [f"| {d.header} | {d.envoy} | {d.kernel} | {d.why} |" for d in DIFFERENCES if d.side is side]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    sys.exit(0)
