"""Keep the collections of one folder by name, and notice when one has been written anew.

get(name)      the open one; else opens it, once; None if there is none       a request, from a thread
open(name)     the newest generation, or the reason why not                   after writing one
refresh()      all of them: what is new, written anew, gone                   a control loop, now and then
"""

from __future__ import annotations

import logging
import threading
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from understudy.indexes.collection import Collection, Embed, heal
from understudy.indexes.faults import BadName, CorruptIndex, IndexFault
from understudy.indexes.snapshot import current_name, generations
from understudy.indexes.vectors import EXACT_BELOW

COLLECTIONS_MAX: Final = 64
# a folder's name may have 255 bytes
FOLDER_BYTES_MAX: Final = 255

_log = logging.getLogger(__name__)


class Library:
    """Up to `collections_max` collections under `folder`. Any thread may call it."""

    def __init__(
        self,
        folder: Path,
        *,
        exact_below: int = EXACT_BELOW,
        rebuild_embed: Embed | None = None,
        collections_max: int = COLLECTIONS_MAX,
    ) -> None:
        self.folder = folder
        self._exact_below = exact_below
        self._rebuild_embed = rebuild_embed
        self._collections_max = collections_max
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
        return self.open(name) if generations(self.path_of(name)) else None

    def open(self, name: str) -> Collection:
        """Open a collection, or its new generation if it has one, and keep it.

        Raises BadName, CorruptIndex, or IndexFault if there are too many.
        """
        folder = self.path_of(name)
        with self._writing:
            held, current = self._open.get(name), current_name(folder)
            if held is not None and held.generation == current:
                return held
            self._refuse_if_hopeless(name, current)
            try:
                opened = Collection.open(folder, exact_below=self._exact_below, rebuild_embed=self._rebuild_embed)
            except CorruptIndex as fault:
                # hashing the same rot again for every request would take 0.2 s of each
                self._shut[name] = (current, str(fault))
                raise
            # the name it was asked for by, not the quoted one of its folder
            opened.name = name
            self._shut.pop(name, None)
            self._open = MappingProxyType({**self._open, name: opened})
            return opened

    def refresh(self) -> dict[str, str]:
        """Open what is new, reopen what was written anew, let go of what is gone; what happened, by name.

        A collection that does not open is logged and, if it was open before, goes on answering as it was.
        """
        there = self.names()
        happened = self._forget_all_but(there)
        for name in there:
            held = self._open.get(name)
            try:
                opened = self.open(name)
            except (IndexFault, OSError) as fault:
                _log.warning("collection %s stays %s: %s", name, "as it was" if held else "shut", fault)
                happened[name] = f"failed: {fault}"
                continue
            if opened is not held:
                happened[name] = f"opened {opened.generation}"
        return happened

    def heal(self, name: str) -> str | None:
        """Write damaged parts of a collection anew and open the result; its generation, None if all was well.

        Seconds to minutes for a large one: it rebuilds the graph. Raises as `collection.heal` does.
        """
        healed = heal(self.path_of(name), rebuild_embed=self._rebuild_embed)
        if healed is not None:
            self.open(name)
        return healed

    def names(self) -> list[str]:
        """The collections on disk that have a snapshot, sorted."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if path.is_dir() and generations(path)]
        names = {path.name: urllib.parse.unquote(path.name) for path in found if not path.name.startswith(".")}
        # a folder that somebody else put there may have a name that no collection would get
        return sorted(name for folder, name in names.items() if name.isprintable() and folder_name(name) == folder)

    def path_of(self, name: str) -> Path:
        """The folder of a collection. Raises BadName."""
        return self.folder / folder_name(name)

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
