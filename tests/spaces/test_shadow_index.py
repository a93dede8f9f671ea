"""Texts of collections from another model's space are embedded with our own, so that handles find them in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kit.two_spaces import FAR, TwoSpaces
from tests.spaces.test_spaces import DOCUMENTS, QUESTIONS, ids_of
from tests.tiers.toy import SPACE, ToyEmbedder, toy_model
from understudy.indexes.faults import IndexFault
from understudy.indexes.library import Library
from understudy.indexes.points import DERIVED, Point
from understudy.indexes.writes import Delete, Upsert, Which
from understudy.proxy.spaces.shadow_index import BATCH_TEXTS, ShadowIndex, pause_s
from understudy.proxy.tiers.knowing import Knowing

NAME = DERIVED + SPACE


def points(count: int, *, text: Callable[[int], str] = lambda n: f"passage {n} of many") -> tuple[Point, ...]:
    return tuple(Point(n, np.eye(6, dtype=np.float32)[n % 6], {"n": n}, text(n)) for n in range(count))


class Desk:
    """A shadow index over a real library, with a toy model and a clock that embedding moves by a second a batch."""

    def __init__(self, folder: Path, *, cpu_share: float = 0.25) -> None:
        self.library = Library(folder)
        self.embedder = ToyEmbedder()
        self.knowing = Knowing()
        self.knowing.give_model(toy_model(self.embedder))
        self.knowing.give_shelf(self.library)
        self.outage = False
        self.slept_s: list[float] = []
        self.index = ShadowIndex(self.knowing, cpu_share, lambda: self.outage, clock=self._clock, sleep=self._sleep)

    def _clock(self) -> float:
        return float(len(self.embedder.asked)) + sum(self.slept_s)

    async def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)

    def held(self) -> int:
        docs = self.library.get("docs")
        assert docs is not None
        return docs.view().held(NAME)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_every_text_gets_a_vector_and_what_has_no_words_is_left_alone(desk: Desk):
    many = 3 * BATCH_TEXTS + 5
    desk.library.write("docs", [Upsert(points(many, text=lambda n: "" if n % 7 == 3 else f"passage {n}"))], space="a")
    await desk.index.once()
    without = sum(n % 7 == 3 for n in range(many))
    assert desk.held() == many - without
    assert desk.index.told == {"docs": {"embedded": many - without, "waiting": without, "reason": ""}}
    asked = len(desk.embedder.asked)
    await desk.index.once()
    assert len(desk.embedder.asked) == asked, "nothing was written: nothing is looked at"
    desk.library.write("docs", [Upsert((Point(999, np.ones(6, np.float32), {}, "new words"),))])
    await desk.index.once()
    assert desk.held() == many - without + 1


async def test_it_takes_no_more_than_its_share_of_a_core(desk: Desk):
    desk.library.write("docs", [Upsert(points(4 * BATCH_TEXTS))], space="a")
    await desk.index.once()
    worked_s = float(len(desk.embedder.asked))
    assert worked_s / (worked_s + sum(desk.slept_s)) <= 0.25
    assert pause_s(1.0, 1.0) == 0.0


async def test_while_an_upstream_is_away_nothing_is_embedded_and_then_it_goes_on_where_it_was(desk: Desk):
    desk.library.write("docs", [Upsert(points(4 * BATCH_TEXTS))], space="a")
    desk.outage = True
    await desk.index.once()
    assert not desk.embedder.asked
    assert "away" in str(desk.index.told["docs"]["reason"])
    desk.outage = False
    rest = desk._sleep  # pyright: ignore[reportPrivateUsage]

    async def goes_away(seconds: float) -> None:
        await rest(seconds)
        desk.outage = True

    desk.index._sleep = goes_away  # pyright: ignore[reportPrivateUsage]
    await desk.index.once()
    assert desk.held() == BATCH_TEXTS
    # another process goes on with what is left
    desk.outage = False
    again = Desk(desk.library.folder)
    await again.index.once()
    assert again.held() == 4 * BATCH_TEXTS
    assert sum(count for count, _ in again.embedder.asked) == 3 * BATCH_TEXTS
    await again.knowing.close()


async def test_collections_of_the_models_own_space_need_none_and_those_that_are_gone_are_forgotten(desk: Desk):
    own = tuple(Point(n, np.ones(8, np.float32), {}, f"text {n}") for n in range(3))
    desk.library.write("own", [Upsert(own)], space=SPACE)
    desk.library.write("docs", [Upsert(points(3))], space="a")
    await desk.index.once()
    assert list(desk.index.told) == ["docs"]
    desk.library.drop("docs")
    await desk.index.once()
    assert desk.index.told == {}


async def test_what_the_disk_refuses_is_said_once_and_tried_again_a_minute_later(
    desk: Desk, caplog: pytest.LogCaptureFixture
):
    desk.library.write("docs", [Upsert(points(2))], space="a")

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(desk.library, name)

        def write(self, *_: object, **__: object) -> None:
            raise IndexFault("no room")

    desk.knowing.give_shelf(Full())  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        await desk.index.once()
    assert sum("no room" in record.getMessage() for record in caplog.records) == 1
    assert desk.index.told["docs"]["reason"] == "no room"
    desk.knowing.give_shelf(desk.library)
    await desk.index.once()
    assert desk.held() == 0
    desk.slept_s.append(60.0)
    await desk.index.once()
    assert desk.held() == 2


async def test_points_deleted_while_they_are_embedded_break_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    desk.library.write("docs", [Upsert(points(BATCH_TEXTS))], space="a")
    embed = desk.embedder.embed

    def embed_while_two_go(texts: Sequence[str], kind: Literal["query", "document"] = "query") -> NDArray[np.float32]:
        desk.library.write("docs", [Delete(Which(ids=(0, 1)))])
        return embed(texts, kind)

    monkeypatch.setattr(desk.embedder, "embed", embed_while_two_go)
    await desk.index.once()
    assert desk.embedder.asked == [(BATCH_TEXTS, "document")]
    assert desk.held() == BATCH_TEXTS - 2


# --- searched --------------------------------------------------------------------------------------------------------


async def test_a_handle_searches_a_copy_in_the_primarys_space_by_our_vectors_of_its_texts(tmp_path: Path):
    two = TwoSpaces(tmp_path, DOCUMENTS, collection_space=FAR)
    true = await two.vector(QUESTIONS[6])
    two.provenance.drain(60.0)
    two.embedder_up = False
    handle = await two.vector(QUESTIONS[6])
    two.database_up = False
    await ShadowIndex(two.knowing, 1.0, lambda: False, clock=lambda: 0.0).once()
    by_handle = await two.search(handle)
    assert (by_handle.source, ids_of(by_handle)[0]) == ("local-index", 6)
    assert two.provenance.counts["searched_beside"] == 1
    assert "searched_words" not in two.provenance.counts
    # the primary's own vectors are still searched by its own
    assert ids_of(await two.search(true))[0] == 6
    assert two.provenance.counts["searched_beside"] == 1
    # and a handle that nobody remembers still carries a vector that means something
    two.provenance.ledger.clear()
    assert ids_of(await two.search(handle))[0] == 6
    assert two.provenance.counts["searched_beside"] == 2
    await two.close()


async def test_nobody_may_name_our_vectors_in_a_search(tmp_path: Path):
    from understudy.proxy.asks import RetrieveAsk
    from understudy.proxy.dialects.base import BadRequest
    from understudy.proxy.tiers.local import _refuse_ours  # pyright: ignore[reportPrivateUsage]

    ask = RetrieveAsk("search", "docs", vector=(1.0,), using=NAME)
    for each in (ask, RetrieveAsk("batch", "docs", parts=(ask,))):
        with pytest.raises(BadRequest):
            _refuse_ours(each)
    _refuse_ours(RetrieveAsk("search", "docs", vector=(1.0,), using="title"))
