"""docs/reasons.md is what the enum says, and names every reason."""

from __future__ import annotations

from tests.reasons_page import SOURCE, TARGET, document
from translator.reasons import Reason


def test_the_page_is_up_to_date() -> None:
    expected = document(SOURCE.read_text(encoding="utf-8"))
    assert TARGET.read_text(encoding="utf-8") == expected, "run `python -m tests.reasons_page`"


def test_every_reason_is_on_the_page() -> None:
    rows = TARGET.read_text(encoding="utf-8")
    for reason in Reason:
        if reason:
            assert f"| {reason.value} | {reason.name} |" in rows
