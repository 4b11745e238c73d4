"""What is captured: the kernel's lookup over it must find what the evaluator finds over the rules."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from translator.evaluate import find_listener
from translator.model import ListenerKind, ListenerRule, ViewRules
from translator.reasons import Reason
from xlb.captures import Capture, CaptureKind, Destination, captures, mapped

ADDRESSES = ("0.0.0.0", "::", "10.0.0.1", "10.0.0.2", "fd00::1")
PORTS = (0, 80, 443)


def lookup(made: dict[Destination, Capture], address: str, port: int) -> Capture | None:
    """As xlb_find_capture in xlb_connect.h; None: not captured."""
    anywhere = mapped("::" if ":" in address else "0.0.0.0")
    for key in (Destination(mapped(address), port), Destination(anywhere, port), Destination(anywhere, 0)):
        if key in made:
            found = made[key]
            return None if found.kind is CaptureKind.NONE else found
    return None


rules = st.builds(
    ListenerRule,
    name=st.sampled_from("abcdefgh"),
    address=st.sampled_from(ADDRESSES),
    port=st.sampled_from(PORTS),
    kind=st.sampled_from(ListenerKind),
    route_config=st.sampled_from(["80", "81"]),
    reason=st.just(Reason.NONE),
    bound=st.booleans(),
)


@given(st.lists(rules, max_size=6, unique_by=lambda rule: rule.name))
def test_the_kernel_finds_what_the_evaluator_finds(listeners: list[ListenerRule]) -> None:
    ports = {rule.name: 15100 + index for index, rule in enumerate(listeners)}
    made = captures(listeners, ports, {"80": 1, "81": 2})
    view = ViewRules(listeners=tuple(listeners))
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"):
        for port in (80, 443, 8080):
            wanted = find_listener(view, (address, port))
            found = lookup(made, address, port)
            if wanted is None or wanted.kind is ListenerKind.DIRECT:
                assert found is None
            else:
                assert found is not None
                assert found.envoy_port == ports[wanted.name]
                kind = CaptureKind.MIXED if wanted.kind is ListenerKind.HTTP else CaptureKind.ENVOY
                assert found.kind is kind


def rule(name: str, address: str, port: int, kind: ListenerKind, **more: object) -> ListenerRule:
    return ListenerRule(name, address, port, kind, **more)  # type: ignore[arg-type]


def test_mixed_names_image_and_port() -> None:
    listeners = [rule("l", "0.0.0.0", 80, ListenerKind.HTTP, route_config="80")]
    assert captures(listeners, {"l": 15100}, {"80": 7}) == {
        Destination(mapped("0.0.0.0"), 80): Capture(CaptureKind.MIXED, image=7, envoy_port=15100)
    }


def test_the_reason_of_a_listener_goes_along() -> None:
    listeners = [rule("l", "10.0.0.1", 3306, ListenerKind.ENVOY, reason=Reason.LISTENER_TCP)]
    (made,) = captures(listeners, {"l": 15100}, {}).values()
    assert made == Capture(CaptureKind.ENVOY, envoy_port=15100, reason=Reason.LISTENER_TCP)


def test_what_envoy_does_not_serve_is_not_captured() -> None:
    assert captures([rule("l", "0.0.0.0", 80, ListenerKind.HTTP, route_config="80")], {}, {"80": 1}) == {}


def test_pass_through_needs_an_entry_only_in_the_shadow_of_a_wildcard() -> None:
    direct = rule("d", "10.0.0.1", 80, ListenerKind.DIRECT)
    assert captures([direct], {}, {}) == {}
    wide = rule("w", "0.0.0.0", 0, ListenerKind.ENVOY)
    made = captures([wide, direct], {"w": 15100}, {})
    assert made[Destination(mapped("10.0.0.1"), 80)] == Capture(CaptureKind.NONE)


def test_addresses_are_mapped() -> None:
    assert mapped("127.0.0.1") == ipaddress.ip_address("::ffff:127.0.0.1").packed
    assert mapped("::1") == bytes(15) + b"\x01"
