"""A text of ours to be written down by the dialects of language models, and a way to read a held stream."""

from __future__ import annotations

from understudy.policies.service import Answer
from understudy.proxy.asks import Written

TEXT = "The model is out of reach. It says:\n\n“Refunds take 14 days.” [1]\nVersion 1.2 is current… 好。Ende"
WRITTEN = Written(TEXT, "understudy-extractive", 11, 5, id="abc", created_s=1_700_000_000)


class Sink:
    """Gathers a stream, and is only content with a whole one."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False

    def write(self, chunk: bytes) -> None:
        self.pieces.append(chunk)

    def end(self) -> None:
        self.ended = True

    def cut(self, reason: str) -> None:
        raise AssertionError(reason)


def streamed(answer: Answer) -> bytes:
    """All of a held stream."""
    assert answer.stream is not None
    sink = Sink()
    answer.stream.relay(sink)
    assert sink.ended
    return b"".join(sink.pieces)
