"""A line of the access log is JSON whatever a caller writes, and says what happened."""

from __future__ import annotations

import io
import json
import select

import msgspec

from understudy.policies.service import Answer, Call, Request
from understudy.proxy.http.exchange import Exchange
from understudy.proxy.reports import access_log
from understudy.proxy.reports.access_log import AccessLog, line_of


class AtTheDoor:
    def send(self, data: bytes) -> None: ...

    def finished(self, exchange: Exchange, end: str, *, abort: bool = False) -> None: ...


def exchange(target: bytes, method: bytes = b"GET", reason: str = "", remembered: dict[object, object] | None = None):
    request = Request(method, target, [], b"body", remembered)
    made = Exchange(AtTheDoor(), "id-1", request, None, None, 1.0)
    made.started, made.ended = 5.0, 5.25
    made.call = Call("embed", request, born=5.0)
    made.call.upstream_s = 0.125
    made.answer = Answer(200, [], b"", tier="primary", source="openai", reason=reason)
    return made


def written(exchange: Exchange, end: str) -> str:
    return msgspec.json.encode(line_of(exchange, end)).decode()


def test_a_line_says_who_answered_and_how_long_it_took():
    line = json.loads(written(exchange(b"/v1/x?key=secret", b"POST"), "done"))
    assert line.pop("at") > 0
    assert line == {
        "id": "id-1",
        "method": "POST",
        "path": "/v1/x",
        "kind": "embed",
        "upstream_ms": 125.0,
        "attempts": 0,
        "status": 200,
        "tier": "primary",
        "source": "openai",
        "ms": 250.0,
        "bytes_in": 4,
        "bytes_out": 0,
        "end": "done",
    }


def test_nothing_that_is_written_in_a_path_or_a_reason_breaks_the_line():
    for nasty in (b'/"},{"', b"/\\", b"/\xff\xfe", b"/" + b"x" * 5000, b"/\x7f\t"):
        text = written(exchange(nasty, reason='openai: "quoted" \\ \n broken'), "cut")
        assert "\n" not in text
        line = json.loads(text)
        assert line["path"].encode("latin-1") == nasty[:512]
        assert line["reason"] == 'openai: "quoted" \\ \n broken'


def test_what_follows_from_the_head_is_the_same_when_it_is_remembered():
    remembered: dict[object, object] = {}
    first, second = (json.loads(written(exchange(b"/a?b", remembered=remembered), "done")) for _ in range(2))
    assert (first["path"], second["path"]) == ("/a", "/a")


def test_lines_that_cannot_be_written_in_time_are_dropped_and_counted(monkeypatch):
    class Stuck(io.BytesIO):
        def write(self, data: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise OSError("no space left on device")

    monkeypatch.setattr(access_log, "LINES_MAX", 3)
    monkeypatch.setattr(access_log, "FLUSH_S", 3600.0)
    log = AccessLog(Stuck())
    for _ in range(5):
        log(exchange(b"/"), "done")
    assert log.dropped == 2
    log.close()
    assert log.dropped == 5


def test_where_several_write_to_one_pipe_lines_go_whole_in_pieces_that_a_pipe_takes_at_once():
    class Pipe(io.BytesIO):
        def __init__(self) -> None:
            super().__init__()
            self.pieces: list[bytes] = []

        def write(self, data) -> int:  # pyright: ignore
            self.pieces.append(bytes(data))
            return len(data)

    out = Pipe()
    log = AccessLog(out)
    log.shared = True
    for number in range(100):
        log(exchange(b"/v1/%d" % number + b"x" * (5000 if number == 7 else 50)), "done")
    log.close()
    assert all(piece.endswith(b"\n") for piece in out.pieces)
    assert all(len(piece) <= select.PIPE_BUF for piece in out.pieces)
    assert len(out.pieces) < 20
    paths = [json.loads(line)["path"] for line in b"".join(out.pieces).splitlines()]
    assert [path.partition("x")[0] for path in paths] == [f"/v1/{number}" for number in range(100)]
