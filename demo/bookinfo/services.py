"""What the four services answer.  Pure but for the calls they make."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

from demo.bookinfo.http import HTML_TYPE, Answer, Calls, Handle, Upstream

TITLE: Final = "The Comedy of Errors"

# reviews v1 shows no stars; v2 and v3 ask ratings and differ in colour only, so that a reader sees who answered.
STAR_COLORS: Final[Mapping[str, str]] = {"v2": "black", "v3": "red"}

_REVIEWS: Final = (
    ("Reviewer1", "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"),
    ("Reviewer2", "Absolutely fun and entertaining. The play lacks thematic depth when compared to others."),
)


def handle_for(service: str, version: str) -> Handle:
    """The handler of one version of a service.  Raises KeyError for an unknown service."""
    pod = f"{service}-{version}"
    return {
        "details": lambda path, headers, calls: _details(pod, version, path),
        "ratings": lambda path, headers, calls: _ratings(pod, version, path),
        "reviews": lambda path, headers, calls: _reviews(pod, version, path, headers, calls),
        "productpage": lambda path, headers, calls: _productpage(pod, version, path, headers, calls),
    }[service]


def _not_found(pod: str, path: str) -> Answer:
    return Answer.json({"pod": pod, "error": f"no such path: {path}"}, status=404)


def _details(pod: str, version: str, path: str) -> Answer:
    if not path.startswith("/details/"):
        return _not_found(pod, path)
    return Answer.json(
        {
            "pod": pod,
            "version": version,
            "id": path.rpartition("/")[2],
            "title": TITLE,
            "author": "William Shakespeare",
            "year": 1595,
            "pages": 200,
            "publisher": "PublisherA" if version == "v1" else "PublisherB",
            "language": "English",
        }
    )


def _ratings(pod: str, version: str, path: str) -> Answer:
    if not path.startswith("/ratings/"):
        return _not_found(pod, path)
    ratings = {"Reviewer1": 5, "Reviewer2": 4}
    return Answer.json({"pod": pod, "version": version, "id": path.rpartition("/")[2], "ratings": ratings})


def _reviews(pod: str, version: str, path: str, headers: Mapping[str, str], calls: Calls) -> Answer:
    if not path.startswith("/reviews/"):
        return _not_found(pod, path)
    reviews: list[dict[str, Any]] = [{"reviewer": who, "text": text} for who, text in _REVIEWS]
    answer: dict[str, Any] = {"pod": pod, "version": version, "id": path.rpartition("/")[2], "reviews": reviews}
    color = STAR_COLORS.get(version)
    if color is not None:
        upstream = calls.get("ratings", f"/ratings/{answer['id']}", headers)
        answer["ratings"] = _summary(upstream)
        for review in reviews:
            if upstream.status == 200:
                review["rating"] = {"stars": upstream.value["ratings"][review["reviewer"]], "color": color}
            else:
                review["rating"] = {"error": "Ratings service is currently unavailable"}
    return Answer.json(answer)


def _summary(upstream: Upstream) -> dict[str, Any]:
    """What a service tells about a call it made: who answered and with which status."""
    summary: dict[str, Any] = {"status": upstream.status, "pod": upstream.value.get("pod", "")}
    if upstream.error:
        summary["error"] = upstream.error
    return summary


def _productpage(pod: str, version: str, path: str, headers: Mapping[str, str], calls: Calls) -> Answer:
    if path not in ("/", "/productpage", "/api/v1/products/0"):
        return _not_found(pod, path)
    details = calls.get("details", "/details/0", headers)
    reviews = calls.get("reviews", "/reviews/0", headers)
    if path == "/api/v1/products/0":
        calls_made = {"details": _summary(details), "reviews": _summary(reviews)}
        if "ratings" in reviews.value:
            calls_made["ratings"] = reviews.value["ratings"]
        return Answer.json({"pod": pod, "version": version, "title": TITLE, "calls": calls_made})
    return Answer(200, _page(pod, headers.get("end-user", ""), details, reviews).encode(), HTML_TYPE)


def _page(pod: str, user: str, details: Upstream, reviews: Upstream) -> str:
    escape = html.escape
    parts = [
        f"<!doctype html><title>{escape(TITLE)}</title><h1>{escape(TITLE)}</h1>",
        f"<p>page by {escape(pod)}{', signed in as ' + escape(user) if user else ''}</p>",
    ]
    if details.status == 200:
        facts = "".join(
            f"<dt>{escape(name)}<dd>{escape(str(details.value[name]))}"
            for name in ("author", "year", "pages", "publisher", "language")
        )
        parts.append(f"<h2>Details</h2><dl>{facts}</dl><p>by {escape(details.value['pod'])}</p>")
    else:
        parts.append("<h2>Error fetching product details!</h2>")
    if reviews.status == 200:
        parts.append("<h2>Reviews</h2>")
        parts.extend(_review(review) for review in reviews.value["reviews"])
        parts.append(f"<p>by {escape(reviews.value['pod'])}</p>")
    else:
        parts.append("<h2>Error fetching product reviews!</h2>")
    return "\n".join(parts) + "\n"


def _review(review: Mapping[str, Any]) -> str:
    rating = review.get("rating", {})
    stars = f' <font color="{rating["color"]}">{"&#9733;" * rating["stars"]}</font>' if "stars" in rating else ""
    note = f" <i>{html.escape(rating['error'])}</i>" if "error" in rating else ""
    text, reviewer = html.escape(review["text"]), html.escape(review["reviewer"])
    return f"<blockquote>{text} <small>{reviewer}</small>{stars}{note}</blockquote>"
