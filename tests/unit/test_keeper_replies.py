"""The keeper's own answers, byte for byte as an Envoy 1.40 gave them."""

from __future__ import annotations

from xlb.keeper.replies import Reply, http_date

NOW = 1795559092.9  # Tue, 24 Nov 2026 22:24:52 GMT


def test_connection_ended_before_the_response() -> None:
    assert Reply.TERMINATED.render(NOW) == (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 95\r\ncontent-type: text/plain\r\n"
        b"date: Tue, 24 Nov 2026 22:24:52 GMT\r\nserver: envoy\r\n\r\n"
        b"upstream connect error or disconnect/reset before headers. reset reason: connection termination"
    )


def test_not_http() -> None:
    assert Reply.MALFORMED.render(NOW) == (
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 87\r\ncontent-type: text/plain\r\n"
        b"date: Tue, 24 Nov 2026 22:24:52 GMT\r\nserver: envoy\r\n\r\n"
        b"upstream connect error or disconnect/reset before headers. reset reason: protocol error"
    )


def test_to_head_there_is_no_body() -> None:
    reply = Reply.TERMINATED.render(NOW, head=True)
    assert reply.endswith(b"server: envoy\r\n\r\n")
    assert b"content-length: 95\r\n" in reply


def test_the_last_one_of_a_connection() -> None:
    reply = Reply.TERMINATED.render(NOW, close=True)
    assert b"server: envoy\r\nconnection: close\r\n\r\nupstream" in reply


def test_dates() -> None:
    assert http_date(0) == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert http_date(951782400) == "Tue, 29 Feb 2000 00:00:00 GMT"
