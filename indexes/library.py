"""Keep the collections of one folder by name, write to them, and notice what others have written.

get(name)      the open one; else opens it, once; None if there is none       a request, from a thread
open(name)     the newest generation, or the reason why not                   after writing one
write(name)    points put and taken away, collections made and dropped        the mirror, from a thread
follow()       the open ones: what was written to them, or anew                a control loop, twice a second
refresh()      all of them: also what is new, or gone                         a control loop, now and then
verify, reload, heal                                                          recovery, one collection at a time
"""

from __future__ import annotations

import logging
import shutil
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from understudy.indexes.collection import Applied, Collection, Embed, Stats, heal
from understudy.indexes.compacting import Compactor
from understudy.indexes.faults import BadName, CannotWrite, CorruptIndex, IndexFault, OverBudget
from understudy.indexes.frozen import bytes_of
from understudy.indexes.generation import current_name, find_generation, generations, read_manifest
from understudy.indexes.journal import Gone, Journal, sync
from understudy.indexes.vectors import EXACT_BELOW
from understudy.indexes.writes import Create, Drop, Upsert, Write

COLLECTIONS_MAX: Final = 64
# a folder's name may have 255 bytes
FOLDER_BYTES_MAX: Final = 255

_DROPPED_MEANWHILE_MAX: Final = 5

_log = logging.getLogger(__name__)


class Library:
    """Up to `collections_max` collections under `folder`. Any thread may call it."""

    def __init__(
        self,
        folder: Path,
        *,
        exact_below: int = EXACT_BELOW,
        rebuild_embed: Embed | None = None,
        embeds: Callable[[str], bool] = lambda _space: True,
        collections_max: int = COLLECTIONS_MAX,
        bytes_max: int | None = None,
        compactor: Compactor | None = None,
    ) -> None:
        self.folder = folder
        self._exact_below = exact_below
        # for `heal` alone: whoever opens a collection is a call, and has no minutes for embedding
        self._rebuild_embed = rebuild_embed
        self._embeds = embeds
        self._collections_max = collections_max
        self._bytes_max = bytes_max
        self._compactor = compactor or Compactor()
        self._open: Mapping[str, Collection] = MappingProxyType({})
        self._shut: dict[str, tuple[str | None, str]] = {}
        self._writing = threading.Lock()

    def get(self, name: str) -> Collection | None:
        """The collection of this name, opened the first time it is asked for; None if there is none.

        An open one costs a look into a dict, and stays the generation it is until `open` or `refresh`. Raises BadName,
        CorruptIndex, or IndexFault if there are too many.
        """
        if (held := self._open.get(name)) is not None:
            return held
        return self.open(name) if _is_there(self.path_of(name)) else None

    def open(self, name: str) -> Collection:
        """Open a collection, or its new generation if it has one, and keep it.

        Raises BadName, CorruptIndex, or IndexFault if there are too many.
        """
        held = self._open.get(name)
        if held is None:
            return self._opened(name)
        try:
            held.refresh()
        except Gone:
            # dropped and made again by another process
            self._let_go(name)
            return self._opened(name)
        except CorruptIndex as fault:
            self._shut[name] = (current_name(held.folder), str(fault))
            raise
        return held

    def write(self, name: str, writes: Sequence[Write], *, space: str = "") -> Applied:
        """Write to a collection, in order: it is on disk when this returns, and found by every later question here.

        What other processes have open shows it at their next `refresh`. A Create or an Upsert makes the collection
        where there is none; the others then find nothing to change. All between two Drops is kept or none of it, and
        doing it all again changes nothing. `space` is the vector space of vectors whose shape is not known yet.

        Raises BadName, BadPoint, BadId, WrongDimension, NotFinite or UnknownFilter for what cannot be kept, OverBudget
        where there is no room, IndexFault if there are too many collections, CorruptIndex, Busy, CannotWrite.
        """
        put = gone = 0
        epoch = ""
        for run in _runs(writes):
            if run is None:
                gone += self.drop(name)
                epoch = ""
                continue
            applied = self._written(name, run, space)
            put, gone, epoch = put + applied.put, gone + applied.gone, applied.epoch
        return Applied(put, gone, epoch)

    def compact(self, name: str) -> str | None:
        """Fold what was written to a collection into a new generation now; see `Collection.compact`.

        It happens by itself when there is much of it. Raises BadName, IndexFault.
        """
        held = self.get(name)
        return None if held is None else held.compact()

    def drop(self, name: str) -> int:
        """Remove a collection and everything in it; how many points it had. Raises BadName, Busy, CannotWrite."""
        folder = self.path_of(name)
        if not folder.is_dir():
            return 0
        held = self._open.get(name)
        try:
            with Journal(folder).writing():
                # renamed first: whoever waits for the lock sees that it is another folder's now
                doomed = self.folder / f".dropped-{uuid.uuid4().hex}"
                folder.rename(doomed)
                sync(self.folder)
        except Gone:
            return 0
        except OSError as fault:
            raise CannotWrite(f"{name}: {fault}") from fault
        self._let_go(name)
        shutil.rmtree(doomed, ignore_errors=True)
        return 0 if held is None else held.count

    def refresh(self) -> dict[str, str]:
        """Open what is new, reopen what was written anew, let go of what is gone; what happened, by name.

        A collection that does not open is logged and, if it was open before, goes on answering as it was.
        """
        there = self.names()
        happened = self._forget_all_but(there)
        for name in there:
            held = self._open.get(name)
            before = "" if held is None else held.generation
            try:
                opened = self._opened(name) if held is None else self._refreshed(name, held)
            except (IndexFault, OSError) as fault:
                _log.warning("collection %s stays %s: %s", name, "as it was" if held else "shut", fault)
                happened[name] = f"failed: {fault}"
                continue
            self._compactor.consider(opened)
            if opened is not held or opened.generation != before:
                happened[name] = f"opened {opened.generation or 'its journal'}"
        return happened

    def follow(self) -> dict[str, str]:
        """Take up what other processes wrote to the open collections; what happened, by name.

        As `refresh`, without a look for new collections: some 30 us for each, where nothing was written.
        """
        happened: dict[str, str] = {}
        for name, held in self._open.items():
            before = held.generation
            try:
                opened = self._refreshed(name, held)
            except (IndexFault, OSError):
                continue  # `refresh`, which comes by less often, says why
            self._compactor.consider(opened)
            if opened.generation != before:
                happened[name] = f"opened {opened.generation}"
        return happened

    def heal(self, name: str) -> str | None:
        """Write damaged parts of a collection anew and open the result; its generation, None if all was well.

        Seconds to minutes for a large one: it rebuilds the graph. Raises as `collection.heal` does.
        """
        healed = heal(self.path_of(name), rebuild_embed=self._rebuild_embed, embeds=self._embeds)
        if healed is not None:
            self.open(name)
        return healed

    def verify(self, name: str) -> list[str]:
        """What is wrong with the files of a collection, each of which is read again; [] if nothing is: then it is no
        longer taken for rotten, if it was. Some 0.2 s for 50 000 x 384. Raises BadName."""
        folder = self.path_of(name)
        wrong: list[str] = []
        if generations(folder):
            generation = find_generation(folder, wrong)
            wrong += [f"{part}: {what}" for part, what in generation.damage.items()] if generation is not None else []
        elif not Journal(folder).exists():
            wrong.append("there is nothing of it")
        if not wrong:
            with self._writing:
                self._shut.pop(name, None)
        return wrong

    def reload(self, name: str) -> Collection:
        """Open a collection anew from its files, whatever is held of it in memory, which answers meanwhile.

        Raises BadName, CorruptIndex; then everything stays as it was.
        """
        opened = Collection.open(self.path_of(name), exact_below=self._exact_below, room=self.make_room)
        opened.name = name
        with self._writing:
            self._shut.pop(name, None)
            self._open = MappingProxyType({**self._open, name: opened})
        return opened

    def names(self) -> list[str]:
        """The collections on disk that have a snapshot or a journal, sorted."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if path.is_dir() and _is_there(path)]
        names = {path.name: urllib.parse.unquote(path.name) for path in found if not path.name.startswith(".")}
        # a folder that somebody else put there may have a name that no collection would get
        return sorted(name for folder, name in names.items() if name.isprintable() and folder_name(name) == folder)

    def path_of(self, name: str) -> Path:
        """The folder of a collection. Raises BadName."""
        return self.folder / folder_name(name)

    @property
    def stats(self) -> dict[str, Stats]:
        """What each open collection takes, by name."""
        return {name: held.stats for name, held in self._open.items()}

    @property
    def bytes_held(self) -> int:
        """About how much memory the open collections take."""
        return sum(stats.bytes for stats in self.stats.values())

    def make_room(self, what: str, needed_bytes: int) -> None:
        """Raise OverBudget if `what`, which needs so much more memory, is more than is allowed."""
        if self._bytes_max is not None and (due := self.bytes_held + needed_bytes) > self._bytes_max:
            raise OverBudget(what, due, self._bytes_max)

    def _opened(self, name: str, *, create: bool = False) -> Collection:
        folder = self.path_of(name)
        with self._writing:
            if (held := self._open.get(name)) is not None:
                return held
            current = current_name(folder)
            self._refuse_if_hopeless(name, current)
            self.make_room(f"opening {name!r}", bytes_on_disk(folder))
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            try:
                opened = Collection.open(
                    folder,
                    exact_below=self._exact_below,
                    create=create,
                    room=self.make_room,
                )
            except CorruptIndex as fault:
                # hashing the same rot again for every request would take 0.2 s of each
                self._shut[name] = (current, str(fault))
                raise
            # the name it was asked for by, not the quoted one of its folder
            opened.name = name
            self._shut.pop(name, None)
            self._open = MappingProxyType({**self._open, name: opened})
            return opened

    def _refreshed(self, name: str, held: Collection) -> Collection:
        generation, why = self._shut.get(name, (None, ""))
        if why and generation == current_name(held.folder):
            raise CorruptIndex(why)
        return self.open(name)

    def _written(self, name: str, writes: Sequence[Write], space: str) -> Applied:
        for _ in range(_DROPPED_MEANWHILE_MAX):
            held = self.get(name)
            if held is None:
                if not any(isinstance(write, Create | Upsert) for write in writes):
                    return Applied()
                held = self._opened(name, create=True)
            try:
                applied = held.write(writes, space=space)
            except Gone:
                # by another process: what is written now is the next collection of this name
                self._let_go(name)
                continue
            self._compactor.consider(held)
            return applied
        raise IndexFault(f"collection {name!r} is dropped over and over")

    def _let_go(self, name: str) -> None:
        with self._writing:
            self._open = MappingProxyType({other: held for other, held in self._open.items() if other != name})

    def _refuse_if_hopeless(self, name: str, current: str | None) -> None:
        if name not in self._open and len(self._open) >= self._collections_max:
            raise IndexFault(f"collection {name!r} is one too many: {self._collections_max} are open")
        generation, why = self._shut.get(name, (None, ""))
        if why and generation == current:
            raise CorruptIndex(why)
        if len(self._shut) > self._collections_max:
            self._shut.clear()

    def _forget_all_but(self, names: list[str]) -> dict[str, str]:
        with self._writing:
            gone = self._open.keys() - set(names)
            if gone:
                self._open = MappingProxyType({name: held for name, held in self._open.items() if name not in gone})
        return dict.fromkeys(sorted(gone), "gone")


def bytes_on_disk(folder: Path) -> int:
    """About how much memory opening the collection in `folder` will take."""
    current = current_name(folder)
    try:
        frozen = 0 if current is None else bytes_of(read_manifest(folder / current))
    except CorruptIndex:
        frozen = 0
    return frozen + 2 * Journal(folder).bytes_held


def _runs(writes: Sequence[Write]) -> Iterator[Sequence[Write] | None]:
    """Writes that go together; None for each Drop between them."""
    run: list[Write] = []
    for write in writes:
        if isinstance(write, Drop):
            if run:
                yield run
            yield None
            run = []
        else:
            run.append(write)
    if run:
        yield run


def _is_there(folder: Path) -> bool:
    return bool(generations(folder)) or Journal(folder).exists()


def folder_name(name: str) -> str:
    """The name of the folder a collection lives in: its own name, percent-quoted, so that no name leads elsewhere.

    Raises BadName for an empty name, one with control characters, or one too long.
    """
    if not name or not name.isprintable():
        raise BadName(f"collection name {name!r} is empty or has characters that cannot be printed")
    # quoting leaves dots alone, and a leading one would hide the folder or climb out of it
    quoted = urllib.parse.quote(name, safe=" ")
    quoted = "%2E" + quoted[1:] if quoted.startswith(".") else quoted
    if len(quoted) > FOLDER_BYTES_MAX:
        raise BadName(f"collection name {name[:40]!r}... is too long")
    return quoted
