"""A toy model and toy collections: small enough to reason about, and otherwise the real thing."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.models.batcher import Batcher
from understudy.models.space import Space
from understudy.proxy.tiers.knowing import Knowing, Model

DIMENSIONS = 8
SPACE = "toy-embed"
TEXTS = {
    1: "Refunds take fourteen days.",
    2: "The warehouse ships on Mondays.",
    3: "Support answers within one hour.",
    4: "Passwords are reset by e-mail.",
}


class ToyEmbedder:
    """Bags of words, hashed: texts that share words are near each other. `gate`, while shut, keeps all waiting."""

    provider = "cpu"
    batch_tokens_max = 2048
    text_tokens_max = 64

    def __init__(self, space: str = SPACE) -> None:
        self.space = Space(space, DIMENSIONS)
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[int, str]] = []
        self.far: frozenset[str] = frozenset()
        """Texts that are near to nothing."""

    def embed(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> NDArray[np.float32]:
        self.gate.wait(60)
        self.asked.append((len(texts), kind))
        return np.stack([-vector_of(text) if text in self.far else vector_of(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) for text in texts)


def vector_of(text: str) -> NDArray[np.float32]:
    """The toy model's vector of a text, of unit length."""
    vector = np.full(DIMENSIONS, 0.01, np.float32)
    for word in text.lower().strip(" .?!").split():
        vector[hashlib.sha256(word.encode()).digest()[0] % DIMENSIONS] += 1
    return vector / np.linalg.norm(vector)


def toy_model(embedder: ToyEmbedder | None = None, *, queue_texts_max: int = 512, named: str = SPACE) -> Model:
    embedder = embedder or ToyEmbedder()
    return Model(embedder, Batcher(embedder, queue_texts_max=queue_texts_max), named)


def toy_library(folder: Path, *, space: str = SPACE, name: str = "docs") -> Library:
    """A library with one collection: the four TEXTS, and a fifth point whose id is a string."""
    points = [
        Point(n, vector_of(text), {"text": text, "k": n, "meta": {"page": n}}, text, f"{n}.md")
        for n, text in TEXTS.items()
    ]
    points.append(Point("5c56c793-69f3-4fbf-87e6-c4bf54c28c26", vector_of("Nothing else."), {"k": 5}, "Nothing else."))
    write_snapshot(folder / name, points, space=space, dimensions=DIMENSIONS)
    library = Library(folder)
    library.refresh()
    return library


def toy_knowing(folder: Path, embedder: ToyEmbedder | None = None) -> Knowing:
    """All that a local tier knows, ready."""
    knowing = Knowing()
    knowing.give_model(toy_model(embedder))
    knowing.give_shelf(toy_library(folder))
    return knowing


async def until_idle(knowing: Knowing) -> None:
    """Wait until no work is in hand any more."""
    async with asyncio.timeout(60):
        while knowing.works:  # noqa: ASYNC110 - nobody else is told when work is over
            await asyncio.sleep(0.001)
