"""Where the services of the captured configuration live: virtual addresses and workload addresses.

The addresses are those of the ServiceEntry and WorkloadEntry objects that istiod was given for the captures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PORT: Final = 9080


@dataclass(frozen=True, slots=True)
class Workload:
    """One server process: a version of a service on an address of its own."""

    service: str
    version: str
    address: str  # IPv4 literal; the port is always PORT

    @property
    def name(self) -> str:
        return f"{self.service}-{self.version}"

    @property
    def listen(self) -> str:
        return f"{self.address}:{PORT}"


SERVICE_ADDRESSES: Final[tuple[tuple[str, str], ...]] = (
    ("productpage", "127.2.0.1"),
    ("details", "127.2.0.2"),
    ("ratings", "127.2.0.3"),
    ("reviews", "127.2.0.4"),
)

WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("details", "v1", "127.1.2.1"),
    Workload("ratings", "v1", "127.1.3.1"),
    Workload("reviews", "v1", "127.1.4.1"),
    Workload("reviews", "v2", "127.1.4.2"),
    Workload("reviews", "v3", "127.1.4.3"),
    Workload("productpage", "v1", "127.1.1.1"),
)


def service_address(service: str) -> tuple[str, int]:
    """The virtual address that a client of `service` dials.  Raises KeyError for a service that does not exist."""
    return dict(SERVICE_ADDRESSES)[service], PORT
