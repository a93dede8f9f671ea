"""What every dialect must do, whatever it speaks: each test module of a dialect calls these with its own exchanges."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tests.dialects.recorded_exchanges import Exchange
from understudy.policies.service import Answer, Call, Failed, Refused, Request
from understudy.proxy.asks import EmbedAsk, GenerateAsk, RetrieveAsk
from understudy.proxy.dialects import DIALECTS, KINDS
from understudy.proxy.dialects.base import BadRequest, Dialect

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"nonsense")
FRAMING = {b"content-length", b"transfer-encoding", b"connection"}


def check_dialect(dialect: Dialect, exchanges: Sequence[Exchange]) -> None:
    """All that can be told from a dialect and the exchanges recorded of it."""
    check_registered(dialect)
    check_errors(dialect)
    for method in METHODS:
        for path in (b"/", b"/collections", b"/collections/%ff/points/query", b"/v1/embeddings", b"//", b"*"):
            check_reading(dialect, Request(method, path, [], b'{"stream": 1'))
    for exchange in exchanges:
        check_reading(dialect, exchange.request)
        if exchange.is_stream:
            check_stream(dialect, exchange.answer.body)
        elif exchange.answer.status == 200 and dialect.read(exchange.request).kind != "pass":
            assert dialect.failure_within(exchange.answer) == "", exchange.call
            check_failures_are_seen(dialect, exchange.answer)


def check_registered(dialect: Dialect) -> None:
    """It is found under its own name, and what its calls are is said beforehand."""
    assert DIALECTS[dialect.name] is dialect
    assert dialect.name in KINDS


def check_reading(dialect: Dialect, request: Request) -> None:
    """Reading and asking raise nothing but what they may, are repeatable, and leave the request as it was."""
    before = (request.method, request.target, list(request.headers), request.body)
    try:
        call = dialect.read(request)
    except BadRequest as fault:
        assert_is_error(dialect.error(fault.status, "bad_request", fault.detail), fault.status)
        return
    assert call.dialect == dialect.name
    assert call.kind in ("pass", KINDS[dialect.name])
    assert not (call.wants_stream and call.kind == "pass")
    check_asking(dialect, call)
    assert (request.method, request.target, list(request.headers), request.body) == before


def check_asking(dialect: Dialect, call: Call) -> None:
    """A call that is passed through means nothing to us; any other means the same each time it is asked."""
    try:
        ask = dialect.ask(call)
    except Refused:
        return
    except BadRequest as fault:
        assert_is_error(dialect.error(fault.status, "bad_request", fault.detail), fault.status)
        return
    assert call.kind != "pass"
    assert isinstance(ask, EmbedAsk | RetrieveAsk | GenerateAsk)
    assert dialect.ask(call) is ask
    assert call.asked is ask


def check_errors(dialect: Dialect) -> None:
    """An error of ours is JSON with its sentence in it, has the status, and leaves framing to the door."""
    for status in (400, 404, 413, 422, 429, 500, 502, 503, 504):
        answer = dialect.error(status, "a_reason", "A sentence with “quotes” and a \n line.", headers=[(b"x-a", b"1")])
        assert_is_error(answer, status)
        assert (b"x-a", b"1") in answer.headers
        assert "A sentence with" in answer.body.decode()
        # what an answer gets in addition must not be shared with the next one
        answer.headers.append((b"x-b", b"2"))
        assert (b"x-b", b"2") not in dialect.error(status, "a_reason", "x").headers


def assert_is_error(answer: Answer, status: int) -> None:
    assert answer.status == status >= 400
    assert answer.stream is None
    assert isinstance(json.loads(answer.body), dict)
    names = {name.lower() for name, _ in answer.headers}
    assert b"content-type" in names
    assert not names & FRAMING


def check_failures_are_seen(dialect: Dialect, answer: Answer) -> None:
    """A page of HTML, an answer cut anywhere, and no answer at all are failures; compressed ones are not judged."""
    for body in (b"", b"<html>Bad gateway</html>", b"upstream connect error", answer.body[: len(answer.body) // 2]):
        assert dialect.failure_within(Answer(200, [], body)), body
    zipped = Answer(200, [(b"Content-Encoding", b"gzip")], b"\x1f\x8b\x08")
    assert dialect.failure_within(zipped) == ""


def check_stream(dialect: Dialect, stream: bytes) -> None:
    """However the bytes are cut, the stream is primed at one and the same byte, is complete at its end, and nowhere
    before it has been primed."""
    for whole in in_all_line_ends(stream):
        at = primed_at(dialect, whole, range(1, len(whole) + 1))
        assert at is not None
        for size in (2, 3, 7, 64, 1 << 20):
            later = primed_at(dialect, whole, [*range(size, len(whole), size), len(whole)])
            assert later is not None
            # not at another byte, but at the first cut that has it
            assert at <= later < at + size or later == len(whole)
        assert not any(dialect.stream_complete(whole[:cut]) for cut in range(at))
        for tail in range(_least_tail(stream), len(whole) + 1, 17):
            assert dialect.stream_complete(whole[-tail:])


def _least_tail(stream: bytes) -> int:
    """How many of the last bytes must do to know the end: the last event, if that is long, with its own line ends."""
    before = stream.rstrip(b"\n").rfind(b"\n\n")
    return 64 if before < 0 else max(64, len(stream) - before + 8)


def primed_at(dialect: Dialect, whole: bytes, cuts: Iterable[int]) -> int | None:
    """How many bytes had come when the stream was found to be primed; once primed, it stays so."""
    found: int | None = None
    for cut in cuts:
        try:
            primed = dialect.primed(whole[:cut])
        except Failed as failed:
            raise AssertionError(f"a sound stream failed: {failed}") from failed
        if primed == "go" and found is None:
            found = cut
        assert primed == ("wait" if found is None else "go")
    return found


def in_all_line_ends(stream: bytes) -> list[bytes]:
    """The same events with each of the line ends that the format allows."""
    return [stream.replace(b"\n", end) for end in (b"\n", b"\r\n", b"\r")]
