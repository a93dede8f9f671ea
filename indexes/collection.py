"""Answer from a collection and write to it: what is written is safe when `write` returns, and found at once.

    write --> draft --> journal (fsync) --> live tail --> view <-- search, scroll, get, count
                           |                               ^
    another process's -----+---- refresh ------------------+---- a new generation, compacted in a child or built anew

Every method may be called from any thread. Questions are answered from a view, which never changes; writes of several
threads share one fsync. Opening never writes: several workers may open the same folder, on a read-only disk too.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.indexes.compacting import Load, compact_in_child, is_flooded
from understudy.indexes.draft import Draft
from understudy.indexes.faults import CannotWrite, CorruptIndex, IndexFault
from understudy.indexes.generation import current_name, generations
from understudy.indexes.healing import Embed, heal
from understudy.indexes.journal import Gone, Journal
from understudy.indexes.live import Live
from understudy.indexes.points import Hit, Point, PointId, is_derived
from understudy.indexes.records import Batch, KeptShape, Record, batch_bytes
from understudy.indexes.vectors import EXACT_BELOW, Distance
from understudy.indexes.view import View
from understudy.indexes.writes import Write

__all__ = ["Applied", "Collection", "Embed", "heal"]

_log = logging.getLogger(__name__)

Room = Callable[[str, int], None]
"""Asked before memory is taken, with what for and how many bytes; raises OverBudget."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a write came to: `put` points written, `gone` taken away, and the epoch that shows them."""

    put: int = 0
    gone: int = 0
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a collection takes. `tail` counts points not compacted yet, dead ones too; `tombstones` the frozen rows that
    no longer count; `bytes` is about what it takes of memory; `generation` names what was compacted last."""

    points: int
    tail: int
    tombstones: int
    bytes: int
    generation: str = ""


class Collection:
    """One open collection. `space` names the vector space its vectors live in."""

    def __init__(self, folder: Path, live: Live, *, exact_below: int, room: Room | None = None) -> None:
        self.name = folder.name
        self.folder = folder
        self._exact_below = exact_below
        self._room = room
        self._journal = Journal(folder)
        self._live = live
        self._view = live.view()
        # held open: the folder of a collection dropped and made again might else have the same inode
        self._held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._held)
        self._current = current_name(folder)
        self._queue: list[_Request] = []
        self._queueing = threading.Lock()
        # who commits, catches up or swaps generations
        self._changing = threading.Lock()
        self._refreshing = threading.Lock()
        # what generations took the place of, each until nobody looks at it any more
        self._left: list[tuple[Live, Callable[[], object]]] = []

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        exact_below: int = EXACT_BELOW,
        rebuild_embed: Embed | None = None,
        create: bool = False,
        room: Room | None = None,
    ) -> Collection:
        """Open the collection in `folder`, whose name it takes; every file is verified first (0.2 s for 50 000 x 384).

        Below `exact_below` points a graph is not even loaded. Damage to what is derived is logged, kept in `.damage`
        and mended in memory; with a damaged graph search is exact. If no generation has a sound store,
        `rebuild_embed(texts) -> float32 [n, d]` may still save one whose damage hit nothing but vectors: the only
        case in which opening writes. With `create` there may be nothing yet. Raises CorruptIndex, listing what is
        wrong, if nothing can be served.
        """
        try:
            live = Live.open(folder, exact_below=exact_below, create=create)
        except CorruptIndex as fault:
            if rebuild_embed is None or not generations(folder):
                raise
            _log.warning("%s: trying to embed its words again", fault)
            heal(folder, rebuild_embed=rebuild_embed)
            live = Live.open(folder, exact_below=exact_below)
        return cls(folder, live, exact_below=exact_below, room=room)

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many points."""
        return self._view.count

    @property
    def generation(self) -> str:
        """The name of the frozen generation; '' where there is none yet."""
        return "" if self._view.frozen is None else self._view.frozen.generation

    @property
    def epoch(self) -> str:
        """Another one after every write, and in every process the same for the same points."""
        return self._view.epoch

    @property
    def shapes(self) -> Mapping[str, KeptShape]:
        """Dimensions, distance and space of the vectors, by name; "" is the one without a name. Ours are left out."""
        return {name: kept for name, kept in self._view.shapes.items() if not is_derived(name)}

    @property
    def space(self) -> str:
        """The space of the vectors without a name, or of the first name."""
        return self._shape.space

    @property
    def dimensions(self) -> int:
        """The dimensions of the vectors without a name, or of the first name; 0 while nobody has said."""
        return self._shape.dimensions

    @property
    def distance(self) -> Distance:
        """The distance of the vectors without a name, or of the first name."""
        return Distance.of(self._shape.distance)

    @property
    def notes(self) -> Mapping[str, Any]:
        """What was noted when it was created."""
        return self._live.notes

    @property
    def damage(self) -> Mapping[str, str]:
        """What is wrong with each part that is not sound; all of it was mended in memory."""
        return self._live.damage

    @property
    def has_graph(self) -> bool:
        """Whether unfiltered questions go through a graph."""
        frozen = self._view.frozen
        return frozen is not None and any(index.graph is not None for index in frozen.vectors.values())

    @property
    def stats(self) -> Stats:
        """What it takes."""
        view = self._view
        return Stats(view.count, view.tail.count, view.tombstones, self._live.bytes_held, self._current or "")

    @property
    def load(self) -> Load:
        """What it carries beside its frozen generation."""
        live, view = self._live, self._view
        return Load(view.tail.count, live.tail.bytes_held, live.frozen_count, view.tombstones, live.lacks_graphs)

    @property
    def is_flooded(self) -> bool:
        """Whether more was written than compacting keeps up with: whoever can wait with more should."""
        return is_flooded(self.load)

    @property
    def _shape(self) -> KeptShape:
        shapes = self.shapes
        if "" in shapes or not shapes:
            return shapes.get("", KeptShape(0))
        return shapes[min(shapes)]

    def view(self) -> View:
        """What there is now, to ask several questions of the same moment."""
        return self._view

    # -- questions ----------------------------------------------------------------------------------------------------

    def search(
        self,
        vector: object,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        score_threshold: float | None = None,
        with_vectors: bool = False,
        using: str = "",
    ) -> list[Hit]:
        """The points nearest to `vector` [d]: ranks offset .. offset + k, best first, equal scores in id order.

        `filter` is Qdrant's JSON or a Condition; `score_threshold` the least score, for euclid the largest distance;
        `using` names which of a point's vectors is meant, and points without it are not found. Raises WrongDimension,
        NotFinite, UnknownFilter, BadQuestion.
        """
        return self._view.search(
            vector,
            k,
            filter=filter,
            offset=offset,
            score_threshold=score_threshold,
            with_vectors=with_vectors,
            using=using,
        )

    def search_text(
        self, text: str, k: int, *, filter: object = None, offset: int = 0, with_vectors: bool = False
    ) -> list[Hit]:
        """The points whose title and text share words with `text`: ranks offset .. offset + k by BM25, best first.

        Raises UnknownFilter, BadQuestion.
        """
        return self._view.search_text(text, k, filter=filter, offset=offset, with_vectors=with_vectors)

    def search_fused(
        self,
        vector: object,
        text: str,
        k: int,
        *,
        filter: object = None,
        offset: int = 0,
        with_vectors: bool = False,
        using: str = "",
    ) -> list[Hit]:
        """The best of both: .5 dense score, min-max scaled, + .5 BM25 over its maximum; scores in [0, 1].

        A point without a word is scored by its vector alone: with .5 of it, it would stand behind every point that has
        some. Where half of SQuAD's passages have their texts, that is recall@10 .94 instead of .57.

        Convex fusion after Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (2023); on
        SQuAD, Cranfield and chunking_evaluation it beat reciprocal rank fusion. Raises as `search` does.
        """
        return self._view.search_fused(
            vector, text, k, filter=filter, offset=offset, with_vectors=with_vectors, using=using
        )

    def get(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        """The points with these ids, in that order; an id that is not here is left out."""
        return self._view.get(ids, with_vectors=with_vectors)

    def scroll(
        self, from_id: PointId | None, limit: int, filter: object = None, *, with_vectors: bool = False
    ) -> tuple[list[Point], PointId | None]:
        """Up to `limit` points from `from_id` on, itself included, and the id the next page starts from, or None.

        In the order of Qdrant's scroll: integers by value, then strings by code point. Raises UnknownFilter,
        BadQuestion.
        """
        return self._view.scroll(from_id, limit, filter, with_vectors=with_vectors)

    def beside(self, space: str) -> tuple[str, float]:
        """The name of the vectors in `space` that we made of the points' texts, beside those that they came with, and
        the share of the points that have one; ("", 0) where there are none."""
        view = self._view
        for name, kept in view.shapes.items():
            if is_derived(name) and kept.space == space and view.count:
                return name, view.held(name) / view.count
        return "", 0.0

    def worded_share(self) -> float:
        """About which share of the points has words, by a sample; 1 where there are no points."""
        return self._view.worded_share()

    def count_matching(self, filter: object = None) -> int:
        """How many points a filter lets through. Raises UnknownFilter."""
        return self._view.count_matching(filter)

    # -- changes ------------------------------------------------------------------------------------------------------

    def write(self, writes: Sequence[Write], *, space: str = "") -> Applied:
        """Write, all of it or nothing: it is on disk when this returns, and found by every later question here.

        Other processes find it at their next `refresh`. Doing it again changes nothing. `space` is the vector space of
        vectors whose shape is not known yet and says none. Writes of several threads share one fsync.

        Raises BadPoint, BadId, WrongDimension, NotFinite or UnknownFilter for what cannot be kept, OverBudget where
        there is no room, Busy, Gone if the collection was dropped meanwhile, CannotWrite if the disk will not have it.
        After any of these nothing was changed.
        """
        request = _Request(tuple(writes), space)
        with self._queueing:
            self._queue.append(request)
        with self._changing:
            # whoever came first has committed for all who waited
            if not request.is_done:
                with self._queueing:
                    waiting, self._queue = self._queue, []
                self._commit(waiting)
        return request.outcome()

    def refresh(self) -> bool:
        """Take up what other processes wrote; whether there was a new generation.

        Where nothing happened it costs a few calls of `stat`. A new generation is opened while the old one answers.
        Raises Gone if the collection was dropped, CorruptIndex if what is there now cannot be opened; then everything
        stays as it was.
        """
        with self._refreshing:
            self._free_what_was_left()
            if not self._is_same_folder():
                raise Gone(f"{self.name}: the collection was dropped")
            current = current_name(self.folder)
            if current == self._current:
                if self._journal.has_more(self._live.position):
                    with self._changing:
                        self._caught_up()
                return False
            # opened beside the one that serves, which goes on being written to
            live = Live.open(self.folder, exact_below=self._exact_below, known=self._live.tail)
            with self._changing:
                live.catch_up()
                live.forget_known()
                left = self._live
                self._live, self._view = live, live.view()
                self._left.append((left, left.tail.leave()))
            self._current = current
            self._free_what_was_left()
            return True

    def compact(self) -> str | None:
        """Have a child fold what was written into a new generation, and take it up; its name, or None if there was
        nothing to fold or somebody else is at it. Seconds to minutes. Raises IndexFault; then nothing was changed."""
        generation = compact_in_child(self.folder)
        self.refresh()
        return generation

    def close(self) -> None:
        """Let go of the files. Only for when nobody is asking any more; otherwise garbage collection does it."""
        if self._live.frozen is not None:
            self._live.frozen.close()

    def _free_what_was_left(self) -> None:
        looked_at = [(live, shown, shown() is not None) for live, shown in self._left]
        self._left = [(live, shown) for live, shown, is_seen in looked_at if is_seen]
        for live, _, is_seen in looked_at:
            if not is_seen:
                live.free()

    def _is_same_folder(self) -> bool:
        try:
            return os.path.samestat(self.folder.stat(), os.fstat(self._held))
        except FileNotFoundError:
            return False

    def _caught_up(self) -> None:
        if self._live.catch_up():
            self._view = self._live.view()

    def _commit(self, waiting: list[_Request]) -> None:
        try:
            with self._journal.writing():
                self._caught_up()
                self._append(waiting)
        except (IndexFault, OSError) as fault:
            why = fault if isinstance(fault, IndexFault) else CannotWrite(f"{self.name}: {fault}")
            for request in waiting:
                request.fail(why)

    def _append(self, waiting: list[_Request]) -> None:
        live, before = self._live, dict[bytes, Record | None]()
        shapes, notes = dict(live.shapes), dict(live.notes)
        drafted: list[tuple[_Request, Batch, bytes]] = []
        for request in waiting:
            draft = Draft(self._view, shapes, before, request.space, notes)
            try:
                for write in request.writes:
                    draft.add(write)
                batch = draft.batch()
                self._make_room(batch)
                body = b"" if batch.is_empty else batch_bytes(batch)
            except IndexFault as fault:
                request.fail(fault)
                continue
            before.update(draft.changes)
            shapes.update(draft.shapes)
            notes.update(batch.notes or {})
            drafted.append((request, batch, body))
        position = live.position
        bodies = [body for _, _, body in drafted if body]
        if bodies:
            position = self._journal.append(position, bodies)
        for _, batch, _ in drafted:
            live.apply(batch)
        live.position = position
        self._view = live.view()
        for request, batch, _ in drafted:
            request.succeed(Applied(len(batch.puts), len(batch.drops), live.epoch))

    def _make_room(self, batch: Batch) -> None:
        if self._room is not None and batch.puts:
            needed = sum(record.bytes_held for record in batch.puts) + self._live.tail.bytes_to_grow(len(batch.puts))
            self._room(f"writing {len(batch.puts)} points to {self.name!r}", needed)


class _Request:
    """One caller's writes, and what came of them."""

    __slots__ = ("_applied", "_fault", "space", "writes")

    def __init__(self, writes: tuple[Write, ...], space: str) -> None:
        self.writes = writes
        self.space = space
        self._applied: Applied | None = None
        self._fault: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self._applied is not None or self._fault is not None

    def succeed(self, applied: Applied) -> None:
        self._applied = applied

    def fail(self, fault: Exception) -> None:
        if not self.is_done:
            self._fault = fault

    def outcome(self) -> Applied:
        if self._fault is not None:
            raise self._fault
        assert self._applied is not None
        return self._applied
