"""Get the local tier ready: load the model and the collections, and index the knowledge that it quotes from.

The `knowledge` collection is made at first start, from our own handbook or from the operator's files, and made anew
when the files or the model's space have changed. Embedding is remembered by text, so that an upgrade embeds only what
is new.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.proxy.settings.settings import Local
from understudy.proxy.tiers.knowing import Knowing, Model

if TYPE_CHECKING:
    from understudy.models.embedder import Embedder

log = logging.getLogger("understudy.local")

KNOWLEDGE = "knowledge"
BY_HAND = "by hand"
FOLLOW_S = 0.5
"""How often open collections take up what other processes have written to them."""
WATCH_EVERY = 10
"""Every so many times the folder is looked at for new collections, too (`understudy index build` makes them)."""


def collections_folder(state: Path) -> Path:
    """Where the local collections live in a state folder."""
    return state / "collections"


def models_folder(state: Path) -> Path:
    """Where built models are kept in a state folder."""
    return state / "models"


async def load_local(knowing: Knowing, local: Local, state: Path) -> None:
    """Load model and collections, and make `knowledge` if it is due. Never raises: the reason is logged and refused
    with."""
    sources = knowledge_sources(local)

    def prepare(model: Model) -> None:
        if sources:
            build_knowledge(model.embedder, sources, collections_folder(state))

    await knowing.load(local, models=models_folder(state), collections=collections_folder(state), prepare=prepare)


async def watch_collections(knowing: Knowing) -> None:
    """Serve what others write to the collections within a second, and what they make anew soon after."""
    loop = asyncio.get_running_loop()
    for turn in itertools.count(1):
        await asyncio.sleep(FOLLOW_S)
        look = knowing.follow if turn % WATCH_EVERY else knowing.refresh
        for name, what in (await loop.run_in_executor(None, look)).items():
            log.info("local collection %s: %s", name, what)


def knowledge_sources(local: Local) -> list[Path]:
    """The files that `local.knowledge` means."""
    if local.knowledge is True:
        from understudy.indexes import knowledge_files

        return knowledge_files()
    return [Path(each) for each in local.knowledge] if local.knowledge else []


def build_knowledge(embedder: object, sources: Sequence[Path], folder: Path) -> bool:
    """Make the collection if it is missing or out of date; whether it was made. Takes seconds: call it in a thread.

    Of several workers, or two processes over one state folder, the first makes it; the others wait, and find it made.
    """
    from understudy.models.embedder import Embedder

    assert isinstance(embedder, Embedder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _built(embedder, sources, folder)


def _built(embedder: Embedder, sources: Sequence[Path], folder: Path) -> bool:
    from understudy.indexes.build import build

    mark = _mark(folder)
    due = _digest(sources, embedder.space.name)
    # what an operator has built under this name is not ours to replace
    if mark.exists() and mark.read_text() in (due, BY_HAND) and (folder / KNOWLEDGE / "CURRENT").exists():
        return False
    report = build(
        folder,
        KNOWLEDGE,
        sources,
        lambda texts: embedder.embed(texts, "document"),
        embedder.space.name,
        embedder.space.dimensions,
    )
    # written last: a crash before this line means that it is looked at once more
    mark.write_text(due)
    log.info("indexed %d passages as %r in %.1f s", report.passages, KNOWLEDGE, report.wall_s)
    return True


def keep_as_built_by_hand(folder: Path) -> None:
    """The collection is an operator's from now on: no start replaces it by what the policies name."""
    _mark(folder).write_text(BY_HAND)


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Let one process build at a time; the lock falls with its process. Where files know no locks two may build."""
    import fcntl

    with (folder / f".{KNOWLEDGE}.lock").open("ab") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mark(folder: Path) -> Path:
    return folder / f".{KNOWLEDGE}.made-from"


def _digest(sources: Sequence[Path], space: str) -> str:
    whole = hashlib.sha256(space.encode())
    for source in sources:
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        for path in files:
            whole.update(f"\0{path.name}\0".encode())
            whole.update(path.read_bytes())
    return whole.hexdigest()
