"""The local tier: answer from the local model and the local index, in the caller's own dialect, or say why not.

    embed      the local model, if it lives in the route's vector space          source local-embed
    retrieve   the local index, if its vectors live in the space of the query's  source local-index
    generate   sentences quoted from the passages at hand, never an assertion    source extractive
               where none fits, a message that says so                          source message

A vector of one space searched among vectors of another finds nothing but noise, and no error says so: hence the
refusals. Everything slow happens in a thread or behind the model's queue, and nobody waits longer than `call.until`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from understudy.indexes.faults import BadQuestion, IndexFault, UnknownFilter
from understudy.indexes.points import is_derived
from understudy.models.errors import DeadlinePassed, ModelError, Overloaded
from understudy.models.space import Space, same_space
from understudy.policies.last_words import message_text
from understudy.policies.service import Answer, Call, Failed, Header, Refused, Service
from understudy.proxy.asks import (
    CollectionInfo,
    EmbedAsk,
    GenerateAsk,
    RetrieveAsk,
    Retrieved,
    Written,
    parts_of,
)
from understudy.proxy.dialects.base import BadRequest, Dialect
from understudy.proxy.handles import Handles
from understudy.proxy.http.stepping import in_task
from understudy.proxy.settings.settings import LocalTier
from understudy.proxy.tiers.handing import SPACE_HEADER, Handing
from understudy.proxy.tiers.knowing import WORK_S_MAX, Counts, Knowing, Model, Shelf, Shelved, Watched
from understudy.proxy.tiers.origins import Home, Origins, has_vectors
from understudy.proxy.tiers.reading import by_name, read

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from understudy.models.prompts import Passage

__all__ = ["EXTRACTIVE_MODEL", "Knowing", "Model", "local_tier"]

TextKind = Literal["query", "document"]
BY_WORDS: Header = (b"x-understudy-search", b"keywords")
"""Of a search by a vector that was answered by its words alone."""
EXTRACTIVE_MODEL = "understudy-extractive"
SLICE_TEXTS_MAX = 128
"""How many texts of one call wait before the model at once, so that a large call doesn't fill the queue by itself."""
CHARS_PER_TOKEN = 4


def local_tier(
    settings: LocalTier,
    *,
    space: str | None,
    dialect: Dialect,
    knowing: Knowing,
    clock: Callable[[], float] = time.time,
    handles: Handles | None = None,
    handing: Handing | None = None,
    origins: Origins | None = None,
    message: str = "",
    watch: Callable[[Shelf], Watched | None] | None = None,
) -> Service:
    """A Service that answers locally. `space` is the route's vector space; `clock` tells the time since the epoch;
    `handles` knows the collections by other names than their own; `handing` gives handles where the local model is of
    another space, `origins` knows whose vectors those of searches are, `watch` how stale the collections, and
    `message` is what is said where nothing fits.

    Raises Refused for what cannot be answered faithfully (`warming`, `no_local_model`, `space`, `no_collection`, …)
    and Failed for what broke (`deadline`, `local_model`, `local_index`). A question that is itself at fault is
    answered with the dialect's own 400.
    """
    tier = _Local(settings, space or "", dialect, knowing, clock, handles, message_text(message))
    tier.handing, tier.origins, tier.watch = handing, origins, watch or _unwatched

    async def answering(call: Call) -> Answer:
        await in_task()
        try:
            await knowing.loaded(call.until)
            return await tier.answer(call)
        except BadRequest as fault:
            answer = dialect.error(fault.status, "bad_request", fault.detail)
            answer.source = "local"
            return answer
        except Overloaded as full:
            raise Refused("overloaded", str(full)) from None
        except DeadlinePassed as late:
            raise Failed("deadline", str(late), again=False) from None
        except ModelError as fault:
            raise Failed("local_model", str(fault), again=False) from fault
        except IndexFault as fault:
            raise Failed("local_index", str(fault), again=False) from fault

    return answering


class _Local:
    """What one local tier of one route knows."""

    __slots__ = (
        "clock",
        "dialect",
        "handing",
        "handles",
        "knowing",
        "message",
        "origins",
        "settings",
        "space",
        "watch",
    )

    def __init__(
        self,
        settings: LocalTier,
        space: str,
        dialect: Dialect,
        knowing: Knowing,
        clock: Callable[[], float],
        handles: Handles | None,
        message: str,
    ) -> None:
        self.settings = settings
        self.space = space
        self.dialect = dialect
        self.knowing = knowing
        self.clock = clock
        self.handles = handles
        self.handing: Handing | None = None
        self.origins: Origins | None = None
        self.message = message
        self.watch: Callable[[Shelf], Watched | None] = _unwatched

    async def answer(self, call: Call) -> Answer:
        ask = self.dialect.ask(call)
        if isinstance(ask, EmbedAsk):
            return _from("local-embed", await self.embed(call, ask))
        if isinstance(ask, RetrieveAsk):
            return _from("local-index", await self.retrieve(call, ask))
        return await self.generate(call, ask)

    # --- embed -----------------------------------------------------------------------------------------------------

    async def embed(self, call: Call, ask: EmbedAsk) -> Answer:
        model = self.knowing.model()
        now = asyncio.get_running_loop().time
        began = now()
        handing = self.handing
        if handing is not None and ask.tokens:
            given_ids = ask
            ask = await self.knowing.in_thread(lambda: handing.readable(given_ids), call.until)
        length = self._length_of_handles(ask, model)
        if ask.whole:
            await self.knowing.in_thread(lambda: _refuse_too_long(ask.texts, model.embedder), call.until)
        texts, kind = _as_read(ask, model.embedder.space)
        vectors = await _embedded(model, texts, kind, call.until)
        name = model.embedder.space.name

        def written() -> Answer:
            # in a thread: 2,048 vectors take 60 ms to write down, and their texts longer to count
            tokens = model.embedder.count_tokens(ask.texts)
            return self.dialect.embedded(ask, given, tokens, name, now() - began)

        if self.handing is None or not length:
            given = vectors
            return await self.knowing.in_thread(written, call.until)
        given = self.handing.handles(call, ask, vectors, length, model.embedder.space)
        return self.handing.marked(await self.knowing.in_thread(written, call.until), model.embedder.space)

    def _length_of_handles(self, ask: EmbedAsk, model: Model) -> int:
        """How long handles must be; 0 where the local model's own vectors are what is asked for. Raises Refused."""
        own = model.embedder.space
        if not model.is_in(self.space):
            if self.handing is not None:
                return self.handing.dimensions(ask, own)
            raise Refused("space", f"this route's vectors are {_named(self.space)}, the local model's are {own.name}")
        if ask.dimensions not in (None, own.dimensions):
            raise Refused("dimensions", f"{ask.dimensions} were asked for, the local model gives {own.dimensions}")
        if ask.tokens:
            raise Refused(
                "token_input",
                "token ids of another tokeniser cannot be embedded here; let the client send text "
                "(LangChain: check_embedding_ctx_length=False)",
            )
        return 0

    # --- retrieve --------------------------------------------------------------------------------------------------

    async def retrieve(self, call: Call, ask: RetrieveAsk) -> Answer:
        if ask.op == "version":
            return self.dialect.retrieved(ask, Retrieved(at_s=self.clock()), 0.0)
        _refuse_ours(ask)
        shelf = self.knowing.shelf()
        watched = self.watch(shelf)
        now = asyncio.get_running_loop().time
        began = now()
        asked, mapped = (ask, "") if self.origins is None else await self._understood(call, ask, shelf, self.origins)

        def found() -> Answer:
            answer = self.dialect.retrieved(ask, self._result(watched or shelf, asked), now() - began)
            if has_vectors(ask) and not has_vectors(asked):
                answer.add(*BY_WORDS)
            if mapped:
                answer.add(SPACE_HEADER, mapped.encode("ascii", "replace"))
            if watched is not None:
                watched.mark(answer)
            return answer

        return await self.knowing.in_thread(found, call.until)

    async def _understood(
        self, call: Call, ask: RetrieveAsk, shelf: Shelf, origins: Origins
    ) -> tuple[RetrieveAsk, str]:
        """The ask with each vector in the space of the collection that is searched, and what to say of a map by which
        one came there."""
        if not has_vectors(ask):
            return ask, ""
        try:
            _, collection = self._found(shelf, ask.collection)
        except BadQuestion as fault:
            raise BadRequest(f"Wrong input: {fault}") from None
        model = self.knowing.model_or_none()
        origins.own = None if model is None else model.embedder.space
        home = Home(collection.space, collection.dimensions, model is not None and model.is_in(collection.space))
        bridge = None
        if model is not None and not home.is_models:
            beside, share = await self.knowing.in_thread(
                lambda: collection.beside(model.embedder.space.name), call.until
            )
            bridge = self.knowing.bridge_over(collection, model)
            home = home._replace(beside=beside, share=share, bridge=bridge)

        async def embeds(text: str) -> tuple[float, ...] | None:
            vectors = await self._vectors_of([text], "query", call.until)
            return None if vectors is None else tuple(vectors[0].tolist())

        tenant = origins.tenant_of(call)
        await origins.ask_others(ask, tenant)
        understood = await origins.understood(ask, home, tenant, embeds)
        return understood, bridge.said if bridge is not None and bridge.was_used else ""

    def _result(self, shelf: Shelf, ask: RetrieveAsk) -> Retrieved:
        """What the index says. A bad question is the caller's 400; a filter we don't know may be Qdrant's business."""
        try:
            if ask.op == "collections":
                return self._listed(shelf)
            if ask.op == "infos":
                return Retrieved(infos=self._infos(shelf))
            name, collection = self._found(shelf, ask.collection)
            ask = by_name(collection, ask)
            self._refuse_unless_same_space(ask, collection)
            if ask.op == "info":
                return Retrieved(info=self._info(name, collection))
            return read(collection, ask)
        except UnknownFilter as fault:
            raise Refused("unsupported_filter", str(fault)) from None
        except BadQuestion as fault:
            raise BadRequest(f"Wrong input: {fault}") from None

    def _found(self, shelf: Shelf, called: str) -> tuple[str, Shelved]:
        """A collection and its name to callers, by that name or by what their database calls it."""
        if self.handles is None or called in self.settings.collections:
            return called, self._collection(shelf, called)
        name = self.handles.name_among(called, lambda: self._callers_names(shelf)) or called
        return name, self._collection(shelf, name)

    def _info(self, name: str, collection: Shelved) -> CollectionInfo:
        handle = "" if self.handles is None else self.handles.handle_of(name)
        shapes = getattr(collection, "shapes", {})
        named = {each: (shape.dimensions, str(shape.distance)) for each, shape in shapes.items()}
        vectors = named if named.keys() - {""} else {}
        return CollectionInfo(name, collection.count, collection.dimensions, str(collection.distance), handle, vectors)

    def _listed(self, shelf: Shelf) -> Retrieved:
        names = self._callers_names(shelf)
        if self.handles is None:
            return Retrieved(names=names)
        return Retrieved(names=names, infos=[self._info(name, self._collection(shelf, name)) for name in names])

    def _collection(self, shelf: Shelf, name: str) -> Shelved:
        local_name = self.settings.collections.get(name, name)
        try:
            collection = shelf.get(local_name)
        except BadQuestion:
            # a name that no folder can have is a name we have nothing under
            collection = None
        if collection is None:
            # never a 404: that we have no copy says nothing about the database
            raise Refused("no_collection", f"there is no local collection {local_name!r}")
        return collection

    def _refuse_unless_same_space(self, ask: RetrieveAsk, collection: Shelved) -> None:
        """A vector of the caller's may be compared only with vectors of the route's space; one looked up by id is the
        collection's own."""
        # what is searched among vectors of our own was found to be of their space
        by_vector = [part for part in parts_of(ask) if part.vector is not None and not is_derived(part.using)]
        asked = {(part.space or self.space, part.using) for part in by_vector}
        if all(self._is_of(space, _space_of(collection, using)) for space, using in asked):
            return
        raise Refused(
            "space", f"this route's vectors are {_named(self.space)}, those of the collection are {collection.space}"
        )

    def _is_of(self, vectors: str, space: str) -> bool:
        if same_space(vectors, space):
            return True
        try:
            model = self.knowing.model()
        except Refused:
            return False
        return model.is_in(vectors) and model.is_in(space)

    def _callers_names(self, shelf: Shelf) -> list[str]:
        """The local collections under the names that callers know them by."""
        there = {name for name in shelf.names() if shelf.get(name) is not None}
        renamed = {ours: theirs for theirs, ours in self.settings.collections.items() if ours in there}
        return sorted(renamed.get(name, name) for name in there)

    def _infos(self, shelf: Shelf) -> list[CollectionInfo]:
        """What there is to say of each collection that the settings name; those they don't are somebody else's."""
        if not self.settings.collections:
            raise Refused("no_collection", "`collections` of the local tier names none")
        return [self._info(name, self._collection(shelf, name)) for name in self.settings.collections]

    # --- generate --------------------------------------------------------------------------------------------------

    async def generate(self, call: Call, ask: GenerateAsk) -> Answer:
        """Sentences quoted from the prompt's own context, or from the collection of the settings; where nothing fits,
        a message that says so. Raises Refused where either would break what the caller parses.

        A model makes it better, and is not needed: words alone choose where there is none.
        """
        if ask.structured:
            raise Refused("structured", f"{ask.structured} were asked for, and quoted sentences are not that")
        from understudy.models.extractive import candidates, choose, quote

        question, passages = await self.knowing.in_thread(lambda: _read_prompt(ask.messages), call.until)
        asked = await self._vectors_of([question], "query", call.until) if question else None
        searched = bool(question) and not passages
        if searched:
            passages = await self._passages_for(question, asked, call.until)
        found = await self.knowing.in_thread(lambda: candidates(question, passages), call.until)
        texts = [each.text for each in found] if asked is not None else []
        others = await self._sentence_vectors(texts, call.until)

        def written() -> Answer:
            import numpy as np

            vectors = None if asked is None or others is None else np.concatenate([asked, others])
            extract = choose(question, found, vectors, self.settings.sentences, searched=searched)
            source = "extractive" if extract.quotes else "message"
            text = quote(extract, refusal=self.message)
            return _from(source, self.dialect.generated(ask, self._written(call, ask, text, source)))

        return await self.knowing.in_thread(written, call.until)

    async def _sentence_vectors(self, texts: Sequence[str], until: float) -> NDArray[np.float32] | None:
        """Vectors [n, d]: those that are kept, and the others embedded now; None where the model won't."""
        kept = self.knowing.sentences
        if not texts or kept is None:
            return await self._vectors_of(texts, "document", until)
        dimensions = self.knowing.model().embedder.space.dimensions
        vectors, there = await self.knowing.in_thread(lambda: kept.of(texts, dimensions), until)
        missing = [text for text, known in zip(texts, there, strict=True) if not known]
        if missing:
            fresh = await self._vectors_of(missing, "document", until)
            if fresh is None:
                return None
            vectors[~there] = fresh
        return vectors

    async def _passages_for(self, question: str, asked: NDArray[np.float32] | None, until: float) -> Sequence[Passage]:
        """What the settings' collection holds on a question; nothing where there is no such collection."""
        from understudy.models.extractive import Passage

        try:
            collection = self._collection(self.knowing.shelf(), self.settings.collection)
        except Refused:
            return []
        k = self.settings.passages

        def found() -> list[Passage]:
            if asked is not None and self.knowing.model().is_in(collection.space):
                hits = collection.search_fused(asked[0], question, k)
            else:
                hits = collection.search_text(question, k)
            return [Passage(hit.source, hit.text, hit.score) for hit in hits]

        return await self.knowing.in_thread(found, until)

    async def _vectors_of(self, texts: Sequence[str], kind: TextKind, until: float) -> NDArray[np.float32] | None:
        """Vectors [n, d], or None where the model is not there, has too much to do, or breaks."""
        if not texts:
            return None
        try:
            return await _embedded(self.knowing.model(), texts, kind, until)
        except (Refused, Overloaded, ModelError):
            return None

    def _written(self, call: Call, ask: GenerateAsk, text: str, source: str) -> Written:
        from understudy.models.prompts import text_of

        prompt = [text_of(message.get("content")) for message in ask.messages]
        try:
            count = self.knowing.model().embedder.count_tokens
        except Refused:
            count = _tokens_about
        counts = count(prompt), count([text])
        return Written(text, EXTRACTIVE_MODEL, *counts, id=call.id, created_s=int(self.clock()), source=source)


# --- what needs no tier --------------------------------------------------------------------------------------------


def _refuse_ours(ask: RetrieveAsk) -> None:
    """No caller searches vectors that their database does not have."""
    if any(is_derived(each.using) for each in parts_of(ask)):
        raise BadRequest("Wrong input: Not existing vector name error: its vectors have no such name")


def _unwatched(_shelf: Shelf) -> None:
    """No collection is a copy of anything."""


def _from(source: str, answer: Answer) -> Answer:
    answer.source = source
    return answer


def _read_prompt(messages: Sequence[dict[str, Any]]) -> tuple[str, Sequence[Passage]]:
    from understudy.models.prompts import passages_in_prompt, question_in_prompt

    return question_in_prompt(messages), passages_in_prompt(messages)


def _tokens_about(texts: Sequence[str]) -> int:
    """Near enough for a usage figure, where there is no tokeniser."""
    return sum(map(len, texts)) // CHARS_PER_TOKEN


def _space_of(collection: Shelved, using: str) -> str:
    """The space of a collection's vectors of one name."""
    shape = getattr(collection, "shapes", {}).get(using) if using else None
    return collection.space if shape is None else shape.space


def _named(space: str) -> str:
    return space or "of a space that nobody named"


def _as_read(ask: EmbedAsk, space: Space) -> tuple[Sequence[str], TextKind]:
    """The texts without prefixes, and which of the model's own stands before them. Raises Refused for texts that the
    model reads neither as queries nor as documents."""
    prefixes: list[tuple[str, TextKind]] = [(space.query_prefix, "query"), (space.document_prefix, "document")]
    if ask.kind in ("query", "document"):
        return ask.texts, ask.kind
    if not ask.kind or not any(prefix for prefix, _ in prefixes):
        # The API does not say which; one text alone is mostly a question, and to a model without prefixes it's all one.
        return ask.texts, "query" if len(ask.texts) == 1 else "document"
    if ask.kind == "as_is":
        for prefix, kind in sorted(prefixes, reverse=True):
            if all(text.startswith(prefix) for text in ask.texts):
                return [text[len(prefix) :] for text in ask.texts], kind
    raise Refused("prefix", f"{space.name} reads queries and documents, each with a prefix; these texts are neither")


def _refuse_too_long(texts: Sequence[str], embedder: Counts) -> None:
    """Raise Refused if a text that must not be cut is longer than the model reads."""
    longest = max(map(embedder.count_tokens, ([text] for text in texts)), default=0)
    if longest > embedder.text_tokens_max:
        raise Refused("too_long", f"a text of {longest} tokens; the local model reads {embedder.text_tokens_max}")


async def _embedded(model: Model, texts: Sequence[str], kind: TextKind, until: float) -> NDArray[np.float32]:
    """Vectors [n, d], asked for in slices."""
    until = min(until, asyncio.get_running_loop().time() + WORK_S_MAX)
    first = await model.batcher.embed(texts[:SLICE_TEXTS_MAX], kind=kind, until=until)
    if len(texts) <= SLICE_TEXTS_MAX:
        return first
    import numpy as np

    later = [
        await model.batcher.embed(texts[at : at + SLICE_TEXTS_MAX], kind=kind, until=until)
        for at in range(SLICE_TEXTS_MAX, len(texts), SLICE_TEXTS_MAX)
    ]
    return np.concatenate([first, *later])
