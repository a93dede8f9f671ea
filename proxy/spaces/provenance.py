"""What one process knows of the vectors it has handed out: the ledger, and whether handles are about.

    answered embedding --> pending (bodies, unread) --ten times a second, or when it is asked for--> ledger
    handle given out --> ledger at once; every call is looked through for marks from then on

Nothing is read while a caller waits. The bodies that wait are bounded, and so is what one turn of the loop reads.
"""

from __future__ import annotations

import json
import logging
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from understudy.models.space import canonical_name
from understudy.models.vocabulary import Vocabulary
from understudy.policies.ledger import Entry, LedgerRules
from understudy.policies.ledger import Ledger as Heart
from understudy.policies.marks import MARK_PLACES, first_handle, mark_of, space_key, unpacked, vector_in
from understudy.policies.service import Answer, Call, Refused, Request
from understudy.proxy.asks import EmbedAsk
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.durable import replace_file
from understudy.proxy.settings.settings import Ledger
from understudy.proxy.spaces.embeddings_told import encoding_of, vectors_in
from understudy.proxy.spaces.reembedding import Reembedding, Way
from understudy.proxy.spaces.shared_ledger import SharedLedger

PENDING_MAX = 64
"""Answers that wait to be read. Each keeps its body, and the next one lies in cold memory for it: with 512 of 21 KiB a
call cost half as much again."""
PENDING_BYTES_MAX = 8 * 1024 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024
"""An embedding longer than this is not read: it is a batch of documents, for which nobody searches."""
DRAIN_S = 0.004
"""Seconds of reading in one turn of the loop, ten times a second: 2,000 vectors a second, and 4 % of a core."""
DIMENSIONS_MAX = 256
"""Pairs of a space and a model whose dimensions are remembered."""

log = logging.getLogger("understudy.spaces")


class Decodes(Protocol):
    """What reads token ids as text (`understudy.models.vocabulary.Vocabulary`). Raises ValueError."""

    @property
    def is_loaded(self) -> bool: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


class Answered(NamedTuple):
    """An embedding that was answered and not yet read."""

    request: Request
    answer: Answer
    dialect: Dialect
    space: str
    tenant: bytes
    size_bytes: int
    vocabulary: Decodes | None = None


class Origin(NamedTuple):
    """Where a vector came from: its space, its text as far as it is known, and the vector to search its space with."""

    space: str
    text: str
    vector: array[float] | None
    is_handle: bool
    entry: Entry | None = None


class Provenance:
    """One process's worth. `names` are the spaces handles may be of: the local model's."""

    def __init__(
        self, rules: LedgerRules | None = None, *, wall: Callable[[], float] = time.time, path: Path | None = None
    ) -> None:
        self.ledger = Heart(rules or Ledger())
        self.watch_s = Ledger().watch_s
        self.is_armed = False
        self.always = False
        self.handed_at = 0.0
        self.dimensions: dict[tuple[str, str], int] = {}
        self.counts: dict[str, int] = {}
        self.unavailable: dict[tuple[str, str], int] = {}
        self.served: dict[tuple[str, str], int] = {}
        self.second: SharedLedger | None = None
        self.reembedding = Reembedding()
        self.pairing: Callable[[str, Sequence[bytes], Sequence[str], str], object] | None = None
        """Who is told of spaces, vectors and texts, and of which kind these are, as answers are read."""
        self._vocabularies: dict[str, Vocabulary] = {}
        self._wall = wall
        self._path = path
        self._pending: deque[Answered] = deque()
        self._pending_bytes = 0
        self._saved: dict[str, Any] = {}
        self._load()

    # --- are handles about? ----------------------------------------------------------------------------------------

    def obey(self, rules: Ledger, *, never_alone: bool) -> None:
        """Go by these rules from now on. `never_alone` says that others give handles out, too, and we don't hear of
        it."""
        self.ledger.rules = rules
        self.ledger.fit()
        self.watch_s = rules.watch_s
        self.always = never_alone
        self.is_armed = self._is_watching()

    def _is_watching(self) -> bool:
        return self.always or self._wall() - self.handed_at < self.watch_s

    def arm(self) -> None:
        """A handle is given out, or may be about: look through every call from now on."""
        self.handed_at = self._wall()
        self.is_armed = True

    def look(self, request: Request) -> bool:
        """Whether a handle is in the request's body, or it can't be told since the body is packed."""
        encoding = (request.header(b"content-encoding") or b"").strip().lower()
        body = unpacked(request.body, encoding)
        return body is None or first_handle(body) is not None

    def tick(self) -> bool:
        """Once a second: stop looking when no handle can be about any more. Whether there is something new to be
        saved."""
        self.is_armed = self._is_watching()
        return self._state() != self._saved

    def vocabulary_of(self, path: str | None) -> Vocabulary | None:
        """The vocabulary in a file, one for all routes that name it; it is read when it is first needed."""
        if path is None:
            return None
        return self._vocabularies.setdefault(path, Vocabulary(Path(path)))

    # --- vectors handed out ----------------------------------------------------------------------------------------

    def count(self, word: str, number: int = 1) -> None:
        """Add to what became of vectors."""
        self.counts[word] = self.counts.get(word, 0) + number

    def answered(
        self,
        call: Call,
        answer: Answer,
        dialect: Dialect,
        space: str,
        tenant: bytes,
        vocabulary: Decodes | None = None,
    ) -> None:
        """An embedding went to its caller: keep it to be read later, if there is room."""
        if answer.stream is not None or answer.source == "local-embed":
            # a local answer of another space is made of handles, which are remembered where they are made
            return
        size = len(answer.body) + len(call.request.body)
        if size > BODY_BYTES_MAX:
            self.count("too_long")
            return
        if len(self._pending) >= PENDING_MAX or self._pending_bytes + size > PENDING_BYTES_MAX:
            # more than is read in the meantime: what is not known is taken for the primary's, as it is
            self.count("dropped")
            return
        self._pending.append(Answered(call.request, answer, dialect, space, tenant, size, vocabulary))
        self._pending_bytes += size

    def drain(self, budget_s: float) -> None:
        """Read what waits, for about so long, and have the replicas know of it."""
        until = time.perf_counter() + budget_s
        while self._pending and time.perf_counter() < until:
            waiting = self._pending.popleft()
            self._pending_bytes -= waiting.size_bytes
            try:
                self._read(waiting)
            except (ValueError, Refused, BadRequest, RecursionError):
                self.count("unreadable")
        if self.second is not None:
            self.second.flush()

    def _read(self, waiting: Answered) -> None:
        call = Call("embed", waiting.request, dialect=waiting.dialect.name)
        ask = waiting.dialect.ask(call)
        body = unpacked(waiting.answer.body, encoding_of(waiting.answer))
        if not isinstance(ask, EmbedAsk) or body is None:
            raise ValueError("no embedding that can be read")
        vectors = vectors_in(waiting.dialect.name, body)
        if vectors and ask.dimensions is None:
            self.learn(waiting.space, ask.model, len(vectors[0]) >> 2)
        self.reembedding.knows(waiting.space, Way(waiting.request.target, waiting.request.path, ask.model))
        texts = ask.texts
        if ask.tokens and waiting.vocabulary is not None and waiting.vocabulary.is_loaded:
            texts = tuple(map(waiting.vocabulary.decode, ask.tokens))
        if len(vectors) != len(texts):
            # token ids, of which nobody here knows the text
            self.count("without_text", len(vectors))
            return
        its_own = [mark_of(array("f", vector[-4 * MARK_PLACES :])) is None for vector in vectors]
        for vector, text, is_its_own in zip(vectors, texts, its_own, strict=True):
            if is_its_own:
                self.remember(vector, waiting.space, text, waiting.tenant, model=ask.model)
        if self.pairing is not None and all(its_own):
            self.pairing(waiting.space, vectors, texts, ask.kind)

    def remember(
        self, vector: bytes, space: str, text: str, tenant: bytes = b"", *, model: str = "", own: bytes = b""
    ) -> None:
        """Keep what a vector is of, here and where the replicas look."""
        entry = self.ledger.remember(vector, space, text, tenant, model=model, own=own)
        if entry is not None and self.second is not None:
            self.second.tell(vector, entry)

    async def ask_others(self, vectors: Iterable[Sequence[float]], tenant: bytes) -> None:
        """Have what the replicas remember of these vectors, where it is not known here."""
        second = self.second
        if second is None:
            return
        self.drain(1.0)
        wanted = [array("f", vector).tobytes() for vector in vectors]
        for vector, entry in await second.known(
            [each for each in wanted if self.ledger.find(each, tenant) is None], tenant
        ):
            self.ledger.remember(vector, entry.space, entry.text, tenant, model=entry.model, own=entry.own)
            self.count("from_replicas")

    def learn(self, space: str, model: str, dimensions: int) -> None:
        """The vectors of a space, or of one model of several, have so many dimensions."""
        for key in ((canonical_name(space), canonical_name(model)), (canonical_name(space), "")):
            if key in self.dimensions or len(self.dimensions) < DIMENSIONS_MAX:
                self.dimensions[key] = dimensions

    def dimensions_of(self, space: str, model: str = "") -> int | None:
        """As far as anybody has seen."""
        name = canonical_name(space)
        return self.dimensions.get((name, canonical_name(model)), self.dimensions.get((name, "")))

    def origin_of(self, vector: Sequence[float], tenant: bytes, own: str, own_dimensions: int) -> Origin | None:
        """Where a vector came from; `own` is the local model's space. None for one that nobody here handed out: then
        it is the application's own, of the route's space."""
        given = array("f", vector)
        self.drain(1.0)
        entry = self.ledger.find(given.tobytes(), tenant)
        if mark_of(given[-MARK_PLACES:]) is not None:
            if entry is not None and entry.own:
                return Origin(entry.space, entry.text, array("f", entry.own), True, entry)
            # forgotten, or given out elsewhere: it carries what is needed
            if own and mark_of(given[-MARK_PLACES:]) == space_key(own):
                return Origin(own, "", vector_in(given, own_dimensions), True)
            return Origin("", "", None, True)
        return None if entry is None else Origin(entry.space, entry.text, given, False, entry)

    def text_of(self, vector: Sequence[float], tenant: bytes) -> str:
        """The whole text that a vector is of, as far as it is remembered; '' where it is not."""
        entry = self.ledger.find(array("f", vector).tobytes(), tenant)
        return "" if entry is None or entry.is_cut else entry.text

    # --- kept over a restart ---------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        # to the minute, so that it is not written with every handle
        handed_at = self.handed_at // 60 * 60
        return {"handed_at": handed_at, "dimensions": [[*key, many] for key, many in sorted(self.dimensions.items())]}

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            told: Any = json.loads(self._path.read_text(encoding="utf-8"))
            self.handed_at = float(told["handed_at"]) + 60.0 if told["handed_at"] else 0.0
            self.dimensions = {(str(space), str(model)): int(many) for space, model, many in told["dimensions"]}
            self._saved = self._state()
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            # who can't know whether handles are about looks for them
            self.handed_at = self._wall()
            log.warning("what was known of vector spaces can't be read: %s", type(error).__name__)

    def save(self) -> None:
        """Write down what must outlive us. Writes to disk: call it in a thread, or at the end."""
        if self._path is None:
            return
        # also where it can't be written: it is tried again when there is something new, and not every second
        state = self._saved = self._state()
        try:
            # another worker may have given handles out that we know nothing of
            written = json.loads(self._path.read_text(encoding="utf-8"))
            state = {**state, "handed_at": max(state["handed_at"], float(written["handed_at"]))}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        try:
            replace_file(self._path, json.dumps(state).encode())
        except OSError as error:
            log.warning("what is known of vector spaces can't be written: %s", error.strerror)


# --- what needs no memory ------------------------------------------------------------------------------------------


def tenant_by(request: Request, headers: Sequence[str]) -> bytes:
    """Whose a vector is, by these headers; b"" where none are named: then its bytes are proof enough, since nobody else
    was given them."""
    if not headers:
        return b""
    shown = [(name, request.header(name.lower().encode()) or b"") for name in sorted(headers)]
    spelt = b"".join(b"%d %b" % (len(value), value) for _, value in shown)
    return blake2b(spelt, digest_size=16).digest()
