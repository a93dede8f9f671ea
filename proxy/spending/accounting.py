"""Count the tokens of what upstreams answer, off the calls' path: each leaves a note, and notes are read many at once.

    answer --note--> notes (64 at most) --> what its end tells, or an estimate --> accounts --> budgets
    stream --its end--^

A note keeps no long body: of one that tells its tokens at the end, the end. Notes are read in the call that makes the
64th, or a tenth of a second later; none is ever dropped, since what is not counted is not paid for.
"""

from __future__ import annotations

from collections.abc import Callable

from understudy.policies.marks import unpacked
from understudy.policies.service import Answer, Call, End, Service, Stream
from understudy.policies.spans import Span, Told
from understudy.policies.usage import Accounts, PriceList, Usage
from understudy.proxy.dialects import KINDS
from understudy.proxy.dialects.usage import (
    HEAD_BYTES,
    WAYS,
    Way,
    estimated_input,
    estimated_output,
    finish_in,
    id_in,
    model_in,
    told_in_body,
    told_in_stream,
)
from understudy.proxy.http.upstream_stream import UpstreamStream
from understudy.proxy.settings.settings import Route, Settings, UpstreamTier
from understudy.proxy.spaces.embeddings_told import encoding_of

NOTES_MAX = 64
NOTES_BYTES_MAX = 4 * 1024 * 1024
"""What the bodies that notes keep come to, about; with more, they are read at once."""
LONG_BYTES = 4096
"""Of a longer answer the end is kept, where the count stands there."""
END_BYTES = 2048


Charge = Callable[[bytes, int, float], None]
"""Who is told what was spent: payer, tokens, cost."""


class Desk:
    """Where one tier's answers are noted."""

    __slots__ = ("accountant", "accounts", "charge", "embeds", "tier", "way")

    def __init__(self, accountant: Accountant, tier: str, way: Way, accounts: Accounts, *, embeds: bool) -> None:
        self.accountant = accountant
        self.tier = tier
        self.way = way
        self.accounts = accounts
        self.embeds = embeds
        self.charge: Charge | None = None

    def note(self, call: Call, answer: Answer) -> None:
        """An upstream has answered well: count it later, or at its stream's end."""
        stream = answer.stream
        if stream is not None:
            self._await_end(call, answer, stream)
            return
        body, encoding = answer.body, b""
        whole_bytes = len(body)
        accountant = self.accountant
        if answer.packed:
            encoding = encoding_of(answer)
        elif whole_bytes > LONG_BYTES:
            end = body[-END_BYTES:]
            if self.way.key in end:
                body = body[:HEAD_BYTES] + end
        notes = accountant.notes
        notes.append((self, call.payer, call.request.body, body, whole_bytes, encoding, call.span))
        if len(notes) >= NOTES_MAX or whole_bytes > LONG_BYTES or len(call.request.body) > LONG_BYTES:
            accountant.weigh(call.request.body, body)

    def _await_end(self, call: Call, answer: Answer, stream: Stream) -> None:
        asked, payer, span = call.request.body, call.payer, call.span
        begun = stream.tail if isinstance(stream, UpstreamStream) else b""
        packed = answer.packed

        def ended(_end: End) -> None:
            come = stream.bytes_come if isinstance(stream, UpstreamStream) else 0
            tail = stream.tail if isinstance(stream, UpstreamStream) and not packed else b""
            told = told_in_stream(self.way, begun, tail)
            if told is None:
                told = Usage("", estimated_input(asked), estimated_output(tail, come), is_estimated=True)
            told = told._replace(model=model_in(begun) or model_in(tail) or model_in(asked))
            self.settle(payer, told)
            if span is not None:
                span.tell(Told(told, finish_in(tail), id_in(begun) or id_in(tail)))

        stream.watch(ended)

    def read(self, asked: bytes, body: bytes, whole_bytes: int, encoding: bytes, span: Span | None) -> Usage:
        """What a whole answer took; `span` is told of it."""
        plain = unpacked(body, encoding) if encoding else body
        usage = self._told(asked, plain, whole_bytes)
        if span is not None:
            span.tell(Told(usage, finish_in(plain or b""), id_in(plain or b"")))
        return usage

    def _told(self, asked: bytes, plain: bytes | None, whole_bytes: int) -> Usage:
        if plain is None:
            return Usage(model_in(asked), estimated_input(asked), is_estimated=True)
        model = model_in(plain if self.embeds or len(plain) <= LONG_BYTES else plain[:HEAD_BYTES]) or model_in(asked)
        told = told_in_body(self.way, plain, model)
        if told is not None:
            return told
        output = 0 if self.embeds else estimated_output(plain, max(whole_bytes, len(plain)))
        return Usage(model, estimated_input(asked), output, is_estimated=True)

    def settle(self, payer: bytes, usage: Usage) -> None:
        """Put it on the bill, and have it paid."""
        cost = self.accounts.add(self.tier, usage, self.accountant.prices.find(usage.model))
        if self.charge is not None:
            self.charge(payer, usage.tokens, cost)


Note = tuple[Desk, bytes, bytes, bytes, int, bytes, Span | None]
"""Whose it is, who pays, the request's body, the answer's (or its ends), its length, how it is packed, and the span
that is told of it."""


class Accountant:
    """All the counting of one process. `accounts` are the routes' own, kept over reloads."""

    def __init__(self) -> None:
        self.prices = PriceList({})
        self.currency = ""
        self.accounts: dict[str, Accounts] = {}
        self.notes: list[Note] = []
        self._bytes = 0

    def obey(self, settings: Settings) -> None:
        """Go by these prices from now on."""
        self.prices = PriceList(settings.prices.models)
        self.currency = settings.prices.currency

    def counted(
        self, service: Service, route: Route, tier: UpstreamTier, dialect: str, charge: Charge | None
    ) -> Service:
        """`service`, an upstream that speaks `dialect`, with what it answers counted; where its answers cost tokens."""
        way = WAYS.get(dialect)
        if way is None:
            return service
        accounts = self.accounts.setdefault(route.name, Accounts())
        desk = Desk(self, tier.name, way, accounts, embeds=KINDS.get(dialect) == "embed")
        desk.charge = charge
        return counting(service, desk.note)

    def weigh(self, asked: bytes, body: bytes) -> None:
        """There are many notes, or a long one has come: read them all where they are too many, or too long."""
        self._bytes += len(asked) + len(body)
        if len(self.notes) >= NOTES_MAX or self._bytes > NOTES_BYTES_MAX:
            self.drain()

    def drain(self) -> None:
        """Read all notes."""
        notes, self.notes, self._bytes = self.notes, [], 0
        for desk, payer, asked, body, whole_bytes, encoding, span in notes:
            desk.settle(payer, desk.read(asked, body, whole_bytes, encoding, span))


def counting(service: Service, note: Callable[[Call, Answer], None]) -> Service:
    """`service`, whose good answers to prompts and texts are noted."""

    async def noting(call: Call) -> Answer:
        answer = await service(call)
        if answer.status < 300 and call.kind != "pass":
            note(call, answer)
        return answer

    return noting
