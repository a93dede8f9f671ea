"""Keep the collections of one folder by name, and notice when one has been written anew.

open(name)   disk, now          refresh()   disk, all of them: a control loop calls it now and then
get(name)    memory only: what a request may afford; None for a collection that is not open
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
from understudy.indexes.faults import BadName, IndexFault
from understudy.indexes.snapshot import current_name, generations
from understudy.indexes.vectors import EXACT_BELOW

COLLECTIONS_MAX: Final = 64
# a folder's name may have 255 bytes
FOLDER_BYTES_MAX: Final = 255

_log = logging.getLogger(__name__)


class Library:
    """Up to `collections_max` collections under `folder`. Any thread may call it; `get` never waits, nor reads disk."""

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
        self._writing = threading.Lock()

    def get(self, name: str) -> Collection | None:
        """The open collection of this name; None if there is none."""
        return self._open.get(name)

    def open(self, name: str) -> Collection:
        """Open a collection, or its new generation if it has one, and keep it.

        Raises BadName, CorruptIndex, or IndexFault if there are too many.
        """
        folder = self.path_of(name)
        with self._writing:
            held = self._open.get(name)
            if held is not None and held.generation == current_name(folder):
                return held
            if held is None and len(self._open) >= self._collections_max:
                raise IndexFault(f"collection {name!r} is one too many: {self._collections_max} are open")
            opened = Collection.open(folder, exact_below=self._exact_below, rebuild_embed=self._rebuild_embed)
            # the name it was asked for by, not the quoted one of its folder
            opened.name = name
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
        found = [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(urllib.parse.unquote(path.name) for path in found if generations(path))

    def path_of(self, name: str) -> Path:
        """The folder of a collection. Raises BadName."""
        return self.folder / folder_name(name)

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
