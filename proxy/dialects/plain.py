"""Any API we know nothing of: everything is passed through, and an error of ours is plain JSON.

Every other dialect begins as this one and says only what it knows better.
"""

# ruff: noqa: ARG002 - to know nothing of an API is to look at no argument

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Refused, Request
from understudy.proxy.asks import Ask, EmbedAsk, GenerateAsk, RetrieveAsk, Retrieved, Written
from understudy.proxy.dialects.base import Primed, json_answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Plain:
    """Calls of kind `pass`: forwarded and guarded, but never answered locally."""

    name = "plain"
    idle_fields: frozenset[str] = frozenset()
    breaks_are_heard = True
    aliases = False

    def collection_of(self, request: Request) -> str:
        return ""

    def keepable(self, request: Request) -> bool:
        return True

    def written(self, request: Request) -> str | None:
        return None

    def read(self, request: Request) -> Call:
        return Call("pass", request, dialect=self.name)

    def ask(self, call: Call) -> Ask:
        """Raises Refused always: nobody here knows what the bytes mean."""
        raise Refused("unsupported", f"{call.request.method.decode('latin-1')} here is only ever forwarded")

    def changes(self, call: Call) -> tuple[Change, ...]:
        raise Refused("unsupported", f"{self.name} has no words for what {call.request.path.decode('latin-1')} changes")

    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]:
        """All of them: a database of which nothing else is known carries out what it answers 2xx to."""
        return self.changes(call)

    def write_failed(self, call: Call, answer: Answer) -> str:
        return ""

    def failure_within(self, answer: Answer) -> str:
        return ""

    def primed(self, held: bytes) -> Primed:
        return "go" if held else "wait"

    def stream_complete(self, tail: bytes) -> bool:
        """HTTP's own framing says where such a body ends."""
        return True

    def stream_failed(self, tail: bytes) -> bool:
        return False

    def broken_off(self, reason: str) -> bytes:
        return b""

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:
        return json_answer(status, {"error": {"message": detail, "code": reason}}, headers)

    def said(self, body: bytes) -> Written | None:
        return None

    def embedded(
        self, ask: EmbedAsk, vectors: NDArray[np.float32], tokens: int, model: str, took_s: float = 0.0
    ) -> Answer:
        raise Refused("unsupported", f"{self.name} has no words for vectors")

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:
        raise Refused("unsupported", f"{self.name} has no words for points")

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        raise Refused("unsupported", f"{self.name} has no words for a text")
