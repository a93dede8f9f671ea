"""The one interface behind which every API's wire format stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

from understudy.indexes.writes import Change
from understudy.policies.service import Answer, Call, Headers, Request, find_header
from understudy.proxy.asks import Ask, EmbedAsk, GenerateAsk, RetrieveAsk, Retrieved, Written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Primed = Literal["wait", "go"]
JSON_HEADERS: Headers = [(b"content-type", b"application/json")]
SPACE = b" \t\r\n"

_Read = TypeVar("_Read")
_Asked = TypeVar("_Asked", EmbedAsk, GenerateAsk, RetrieveAsk)


class BadRequest(Exception):
    """The caller's fault, found by us before anybody was asked; answered in the caller's dialect with `status`."""

    def __init__(self, detail: str, *, status: int = 400) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


class Malformed(ValueError):
    """Bytes that are not the JSON they should be: broken, too deeply nested, or of another shape."""


class Dialect(Protocol):
    """How an API's requests are read and its answers written. Stateless: one instance serves every route."""

    name: str
    idle_fields: frozenset[str]
    """Top-level fields of a request's JSON body that change nothing in its answer."""

    aliases: bool
    """Whether a collection may go by other names, so that a write by one of them changes what is read by another."""

    breaks_are_heard: bool
    """Whether clients raise what `broken_off` tells them. Where they don't, a broken stream is also left without the
    end that HTTP asks for, which every client notices."""

    def collection_of(self, request: Request) -> str:
        """The collection of a knowledge base that a request of kind `retrieve` reads, or ''."""
        ...

    def keepable(self, request: Request) -> bool:
        """Whether the answer to a request of another kind than `pass` may be kept and told again at all."""
        ...

    def written(self, request: Request) -> str | None:
        """The collection that a request of kind `pass` may change: '' for any of them, None for none."""
        ...

    def read(self, request: Request) -> Call:
        """What the caller means, as cheaply as can be told (kind, wants_stream). Raises BadRequest."""
        ...

    def ask(self, call: Call) -> Ask:
        """The whole meaning, parsed once and kept in `call.asked`. Raises BadRequest, or Refused for what no local
        tier could answer faithfully."""
        ...

    def changes(self, call: Call) -> tuple[Change, ...]:
        """What a request that `written` names changes, in order; () for nothing that is stored in a collection. Raises
        Malformed, or Refused where it cannot be told from the request alone: then whoever mirrors has to ask."""
        ...

    def applied(self, call: Call, answer: Answer) -> tuple[Change, ...]:
        """What of a call's `changes` came about, as its whole 2xx answer tells: what the database refused within a 200
        is left out, ids that it made up are filled in. Raises as `changes` does, also where the answer can't be read.
        """
        ...

    def write_failed(self, call: Call, answer: Answer) -> str:
        """Why a whole 2xx answer to a call of kind `pass` tells of a failure of the database's (a short reason word),
        or ''. It counts against health, and is given back as it is: some of it may have been carried out."""
        ...

    def failure_within(self, answer: Answer) -> str:
        """Why a whole answer with a 2xx status is a failure all the same (a short reason word), or ''.

        Asked only about calls whose kind is not `pass`: what those answer, only their caller can judge.
        """
        ...

    def primed(self, held: bytes) -> Primed:
        """Whether the first content of a streamed answer is among the bytes held. Raises Failed for an error inside
        a 200."""
        ...

    def stream_complete(self, tail: bytes) -> bool:
        """Whether a stream that ended cleanly, with these last bytes, was really at its end."""
        ...

    def stream_failed(self, tail: bytes) -> bool:
        """Whether a stream that is complete, with these last bytes, has told an error of its own before its end."""
        ...

    def broken_off(self, reason: str) -> bytes:
        """What to write into a stream that broke after its first content, so that nobody takes it for whole.

        Empty where the API has no words for it: then only an aborted connection says so.
        """
        ...

    def error(self, status: int, reason: str, detail: str, *, headers: Headers | None = None) -> Answer:
        """An error of ours in the API's own shape."""
        ...

    def embedded(
        self, ask: EmbedAsk, vectors: NDArray[np.float32], tokens: int, model: str, took_s: float = 0.0
    ) -> Answer:
        """Vectors [n, d] written down as the API would; `took_s` seconds were spent on them."""
        ...

    def said(self, body: bytes) -> Written | None:
        """The text of a generated answer, whole or as the bytes of a stream that has ended; None for one that is more
        or less than one finished text (tool calls, a refusal, a length reached)."""
        ...

    def retrieved(self, ask: RetrieveAsk, result: Retrieved, took_s: float) -> Answer:
        """Points written down as the API would."""
        ...

    def generated(self, ask: GenerateAsk, written: Written) -> Answer:
        """A text written down as the API would, streamed if a stream was asked for."""
        ...


def json_answer(status: int, value: Any, headers: Headers | None = None) -> Answer:
    """An Answer whose body is `value` as JSON; `headers` are added to the content type."""
    return Answer(status, JSON_HEADERS + (headers or []), msgspec.json.encode(value))


def parsed(decoder: msgspec.json.Decoder[_Read], body: bytes | msgspec.Raw) -> _Read:
    """What `body` says, or Malformed with the place of the fault; the text repeats nothing of the body."""
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as fault:
        raise Malformed(str(fault)) from None
    except UnicodeDecodeError:
        raise Malformed("the text is not UTF-8") from None
    except RecursionError:
        raise Malformed("nested too deeply") from None


def parsed_or_none(decoder: msgspec.json.Decoder[_Read], data: bytes) -> _Read | None:
    """One event or line of a stream, or None when it is malformed or cut: a single bad one is the caller's to skip, as
    it would be without us."""
    try:
        return parsed(decoder, data)
    except Malformed:
        return None


def asked_once(call: Call, kind: type[_Asked], read: Callable[[Call], _Asked], says: str, status: int = 400) -> _Asked:
    """What a call asks for, read once and kept in `call.asked`. Where `read` raises Malformed, raises BadRequest with
    the API's own words `says` in front."""
    if isinstance(call.asked, kind):
        return call.asked
    try:
        ask = read(call)
    except Malformed as fault:
        raise BadRequest(f"{says}: {fault}", status=status) from None
    call.asked = ask
    return ask


def first_byte(raw: msgspec.Raw) -> bytes:
    """What kind of JSON value a raw field holds, by its first byte; b"" for a field that was not there."""
    return bytes(memoryview(raw)[:1])


def given(raw: msgspec.Raw) -> bool:
    """Whether an optional field was there, and not null."""
    return first_byte(raw) not in (b"", b"n")


def is_encoded(answer: Answer) -> bool:
    """Whether the body is compressed: then it is passed on intact, and nothing in it can be judged."""
    if answer.block:
        # an upstream's: whoever read its head has looked already
        return answer.packed
    encoding = find_header(answer.headers, b"content-encoding")
    return encoding is not None and encoding.lower() != b"identity"


def looks_like_object(body: bytes) -> bool:
    """Whether the body begins and ends as a JSON object does: an HTML page or a cut answer does not, for 0.2 µs."""
    if body[:1] == b"{" and body[-1:] == b"}":
        return True
    return body[:64].lstrip(SPACE)[:1] == b"{" and body[-64:].rstrip(SPACE)[-1:] == b"}"
