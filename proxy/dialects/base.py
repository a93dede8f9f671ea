"""The one interface behind which every API's wire format stands."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from understudy.policies.service import Answer, Call, Headers, Request
from understudy.proxy.asks import Ask, EmbedAsk, GenerateAsk, RetrieveAsk, Retrieved

Primed = Literal["wait", "go"]
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]


class BadRequest(Exception):
    """The caller's fault, found by us before anybody was asked; answered in the caller's dialect with `status`."""

    def __init__(self, detail: str, *, status: int = 400) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


class Dialect(Protocol):
    """How an API's requests are read and its answers written. Stateless: one instance serves every route."""

    name: str

    def read(self, request: Request) -> Call:
        """What the caller means, as cheaply as can be told (kind, wants_stream). Raises BadRequest."""
        ...

    def ask(self, call: Call) -> Ask:
        """The whole meaning, parsed once and kept in `call.asked`. Raises BadRequest, or Refused for what no local
        tier could answer faithfully."""
        ...

    def failure_within(self, answer: Answer) -> str:
        """Why a whole answer with a 2xx status is a failure all the same (a short reason word), or ''."""
        ...

    def primed(self, held: bytes) -> Primed:
        """Whether the first content of a streamed answer is among the bytes held. Raises Failed for an error inside
        a 200."""
        ...

    def stream_complete(self, tail: bytes) -> bool:
        """Whether a stream that ended cleanly, with these last bytes, was really at its end."""
        ...

    def broken_off(self, reason: str) -> bytes:
        """What to write into a stream that broke after its first content, so that nobody takes it for whole."""
        ...

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:
        """An error of ours in the API's own shape."""
        ...

    def embedded(self, ask: EmbedAsk, vectors: NDArray[np.float32], tokens: int, model: str) -> Answer:
        """Vectors [n, d] written down as the API would."""
        ...

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:
        """Points written down as the API would."""
        ...

    def generated(self, ask: GenerateAsk, text: str, model: str, prompt_tokens: int, completion_tokens: int) -> Answer:
        """A text written down as the API would, streamed if a stream was asked for."""
        ...
