"""The kinds of request that the demonstration sends, and what may be counted on in each answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from demo.bookinfo.topology import service_address


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: GET `path` of `service`, by its virtual address."""

    name: str
    service: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def to(self) -> tuple[str, int]:
        return service_address(self.service)

    @property
    def host(self) -> str:
        return f"{self.service}:{self.to[1]}"

    @property
    def url(self) -> str:
        """As `xlb explain` takes it."""
        return f"http://{self.host}{self.path}"


_JASON: Final = (("end-user", "jason"),)

KINDS: Final[tuple[Kind, ...]] = (
    Kind("details", "details", "/details/0"),
    Kind("reviews", "reviews", "/reviews/0"),
    Kind("reviews, jason", "reviews", "/reviews/0", _JASON),
    Kind("ratings", "ratings", "/ratings/0"),
    Kind("ratings, jason", "ratings", "/ratings/0", _JASON),
    Kind("details, odd path", "details", "/details/a/../0"),
    Kind("whole page", "productpage", "/api/v1/products/0"),
    Kind("whole page, jason", "productpage", "/api/v1/products/0", _JASON),
)

_BY_NAME: Final = {kind.name: kind for kind in KINDS}


def kind_named(name: str) -> Kind:
    """The kind of that name.  Raises KeyError."""
    return _BY_NAME[name]
