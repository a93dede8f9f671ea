"""Collections: the conformance suite, exact and by graph, in every distance; then what only a Collection does."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.indexes.check_index import CHECKS, DIMENSIONS, Index, Maker
from tests.indexes.some import TOPICS, clustered, ids, some_points
from understudy.indexes.collection import Collection
from understudy.indexes.conditions import Condition
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.writes import Delete, Upsert, Which


def _maker(distance: str, *, graph: bool) -> Maker:
    exact_below = 0 if graph else 20_000

    def make(folder: Path, points: Sequence[Point]) -> Index:
        write_snapshot(folder, points, space="s", dimensions=DIMENSIONS, distance=distance, graph=graph)
        return reopen(folder)

    def reopen(folder: Path) -> Index:
        return Collection.open(folder, exact_below=exact_below)

    return Maker(f"{distance}-{'graph' if graph else 'exact'}", distance, make, reopen)


def _live_maker(distance: str, frozen: int) -> Maker:
    """The first `frozen` points lie in a snapshot, and the others were written since, some of them twice."""

    def make(folder: Path, points: Sequence[Point]) -> Index:
        write_snapshot(folder, points[:frozen], space="s", dimensions=DIMENSIONS, distance=distance, graph=True)
        collection = Collection.open(folder, exact_below=0)
        stale = [dataclasses.replace(point, payload={"n": -7}, text="") for point in points[frozen - 9 : frozen + 9]]
        collection.write([Upsert(tuple(stale)), Delete(Which(tuple(point.id for point in points[frozen:])))])
        for at in range(max(0, frozen - 9), len(points), 20):
            collection.write([Upsert(tuple(points[at : at + 20]))])
        return collection

    return Maker(
        f"{distance}-live-after-{frozen}", distance, make, lambda folder: Collection.open(folder, exact_below=0)
    )


MAKERS = [_maker(distance, graph=graph) for distance in ("cosine", "dot", "euclid") for graph in (False, True)]


LIVE_MAKERS = [_live_maker(distance, frozen) for distance in ("cosine", "dot", "euclid") for frozen in (0, 60)]
# a journal whose last entry rotted is cut there, as one that a crash tore: test_journal has that
LIVE_CHECKS = [check for check in CHECKS if check.__name__ != "a_flipped_bit_is_never_served"]


@pytest.mark.parametrize("check", LIVE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("maker", LIVE_MAKERS, ids=lambda maker: maker.name)
def test_a_collection_that_is_written_to_keeps_the_contract_too(
    maker: Maker, check: Callable[[Maker, Path], None], tmp_path: Path
):
    check(maker, tmp_path / "docs")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.name)
def test_a_collection_keeps_the_contract_of_an_index(
    maker: Maker, check: Callable[[Maker, Path], None], tmp_path: Path
):
    check(maker, tmp_path / "docs")


def _collection(folder: Path, points: Sequence[Point], **options: object) -> Collection:
    write_snapshot(folder, points, space="minilm", dimensions=DIMENSIONS, **options)  # pyright: ignore[reportArgumentType]
    return Collection.open(folder, exact_below=0)


def test_a_collection_says_what_it_is(tmp_path: Path):
    collection = _collection(tmp_path / "docs", some_points(30), distance="Euclid", graph=True)
    assert (collection.name, collection.space, collection.dimensions) == ("docs", "minilm", DIMENSIONS)
    assert (str(collection.distance), collection.count, collection.generation) == ("euclid", 30, "g-000001")
    assert collection.has_graph
    assert collection.damage == {}


@pytest.mark.parametrize("distance", ["Cosine", "Dot", "Euclid"])
def test_search_scroll_and_count_agree_with_qdrant_in_memory(distance: str, tmp_path: Path):
    points = some_points(60)
    ours = _collection(tmp_path / "docs", points, distance=distance)
    theirs = QdrantClient(":memory:")
    shape = models.VectorParams(size=DIMENSIONS, distance=models.Distance(distance))
    theirs.create_collection("docs", vectors_config=shape)
    theirs.upsert(
        "docs",
        [
            models.PointStruct(id=p.id, vector=p.vector.tolist(), payload=p.payload)
            for p in points
            if p.vector is not None
        ],
    )
    asked = {"must_not": [{"key": "tenant", "match": {"any": ["t1", "t2"]}}]}
    theirs_filter = models.Filter.model_validate(asked)
    query = np.random.default_rng(1).normal(size=DIMENSIONS)
    bar = theirs.query_points("docs", query.tolist(), limit=20).points[15].score + 1e-6
    due = theirs.query_points(
        "docs", query.tolist(), query_filter=theirs_filter, limit=8, offset=2, score_threshold=bar
    ).points
    hits = ours.search(query, 8, filter=asked, offset=2, score_threshold=bar)
    assert ids(hits) == ids(due)
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in due], rel=1e-4)
    following = None
    while True:
        due_page, due_next = theirs.scroll("docs", scroll_filter=theirs_filter, limit=9, offset=following)
        page, next_id = ours.scroll(following, 9, asked)
        assert (ids(page), next_id) == (ids(due_page), due_next)
        if next_id is None:
            break
        following = next_id
    assert ours.count_matching(asked) == theirs.count("docs", count_filter=theirs_filter).count


def test_a_scroll_goes_on_at_the_spelling_of_a_uuid_that_is_there(tmp_path: Path):
    vector = np.ones(DIMENSIONS, np.float32)
    # in the order of the ids, each of these lies far from its canonical spelling, but for the last
    spelt = [f"{n:032x}" for n in range(5)] + [f"A{n:07X}-0000-0000-0000-000000000000" for n in range(5)]
    spelt.append(str(uuid.UUID(int=2**128 - 1)))
    collection = _collection(tmp_path, [Point(each, vector) for each in spelt])
    pages, following = list[str](), None
    for _ in spelt:
        (point,), following = collection.scroll(following, 1)
        pages.append(str(point.id))
    assert (pages, following) == (spelt, None)
    # one that asks by another spelling than the canonical one begins there, too
    assert [point.id for point in collection.scroll("F" * 32, 2)[0]] == spelt[-1:]


def test_a_filter_too_selective_for_the_graph_is_answered_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # with the bounds of a large collection, so that over-fetching and falling back both happen
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_ROWS", 0)
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_ROWS_MAX", 0)
    monkeypatch.setattr("understudy.indexes.vectors._GATHER_SHARE_MAX", 0.0)
    points = some_points(600)
    collection = _collection(tmp_path / "docs", points, graph=True)
    for wanted, passes in (({"gte": 10}, lambda n: n >= 10), ({"lt": 6}, lambda n: n < 6)):
        asked = {"must": [{"key": "n", "range": wanted}]}
        allowed = [point for point in points if passes(point.payload["n"])]
        exact = _collection(tmp_path / f"exact-{len(allowed)}", allowed)
        for query in np.random.default_rng(5).normal(size=(5, DIMENSIONS)):
            assert ids(collection.search(query, 5, filter=asked)) == ids(exact.search(query, 5))


def test_words_find_the_points_that_hold_them_and_filters_apply(tmp_path: Path):
    collection = _collection(tmp_path / "docs", some_points(50))
    hits = collection.search_text("Which snapshot was VERIFIED, and renamed?", 3)
    assert [hit.text.startswith(TOPICS[4]) for hit in hits] == [True] * 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    only = collection.search_text("snapshot", 50, filter={"must": [{"key": "even", "match": {"value": True}}]})
    assert only
    assert {hit.payload["even"] for hit in only} == {True}
    both = collection.search_text("snapshot", 4) + collection.search_text("snapshot", 4, offset=4)
    assert ids(both) == ids(collection.search_text("snapshot", 8))
    assert collection.search_text("xylophone", 5) == []


def test_a_title_in_the_payload_is_searched_too(tmp_path: Path):
    vector = np.ones(DIMENSIONS, np.float32)
    points = [Point(1, vector, {"title": "Circuit breakers"}, "They open."), Point(2, vector, {}, "They close.")]
    assert ids(_collection(tmp_path / "docs", points).search_text("breaker", 5)) == [1]


def test_fusion_weighs_both_sides_and_stays_within_zero_and_one(tmp_path: Path):
    points = some_points(80)
    collection = _collection(tmp_path / "docs", points)
    query = points[20].vector
    assert query is not None
    hits = collection.search_fused(query, "number 33 hedged", 80)
    assert all(0 <= hit.score <= 1 for hit in hits)
    by_words = {hit.id: hit.score for hit in collection.search_text("number 33 hedged", 80)}
    by_vector = {hit.id: hit.score for hit in collection.search(query, 80)}
    least, most = min(by_vector.values()), max(by_vector.values())
    most_worded = max(by_words.values())
    for hit in hits:
        dense = (by_vector[hit.id] - least) / (most - least)
        assert hit.score == pytest.approx(0.5 * dense + 0.5 * by_words.get(hit.id, 0.0) / most_worded, abs=1e-5)
    pages = [hit for at in (0, 10) for hit in collection.search_fused(query, "number 33 hedged", 10, offset=at)]
    assert ids(pages) == ids(hits[:20])
    # without a known word it is dense search, and with a filter neither side leaks
    assert ids(collection.search_fused(query, "xylophone", 9)) == ids(collection.search(query, 9))
    tenant = {"must": [{"key": "tenant", "match": {"value": "t2"}}]}
    assert {hit.payload["tenant"] for hit in collection.search_fused(query, "hedged", 80, filter=tenant)} == {"t2"}


def test_fusion_over_a_large_collection_looks_at_candidates_and_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    points = some_points(900)
    collection = _collection(tmp_path / "docs", points, graph=True)
    queries = np.random.default_rng(2).normal(size=(10, DIMENSIONS))
    whole = [ids(collection.search_fused(query, "hedged number 33", 10)) for query in queries]
    monkeypatch.setattr("understudy.indexes.view._FUSED_SCAN_MAX", 0)
    sampled = [ids(collection.search_fused(query, "hedged number 33", 10)) for query in queries]
    shared = [len(set(one) & set(other)) for one, other in zip(whole, sampled, strict=True)]
    assert sum(shared) >= 95


def test_many_threads_get_the_answers_one_thread_gets(tmp_path: Path):
    points = some_points(400)
    collection = _collection(tmp_path / "docs", points, graph=True)
    queries = np.random.default_rng(4).normal(size=(40, DIMENSIONS))

    def answers(number: int) -> list[object]:
        asked = {"must": [{"key": "n", "range": {"gte": number}}]}
        return [
            ids(collection.search(queries[number], 5)),
            ids(collection.search(queries[number], 60)),
            ids(collection.search(queries[number], 5, filter=asked)),
            ids(collection.search_fused(queries[number], "hedged breaker", 5)),
            ids(collection.scroll(number, 7, asked)[0]),
        ]

    alone = [answers(number) for number in range(40)]
    together: list[list[object]] = [[] for _ in range(40)]

    def work(start: int) -> None:
        for number in range(start, 40, 8):
            together[number] = answers(number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_only_so_many_filters_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.indexes.masks.MASKS_MAX", 3)
    collection = _collection(tmp_path / "docs", some_points(10))
    for number in range(10):
        asked = {"must": [{"key": "n", "match": {"value": number}}]}
        assert collection.count_matching(asked) == 1
        frozen = collection.view().frozen
        assert frozen is not None
        assert len(frozen.masks) <= 3


def test_payloads_too_many_to_hold_are_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("understudy.indexes.frozen.PAYLOADS_HELD_MAX", 5)
    collection = _collection(tmp_path / "docs", some_points(30))
    assert collection.count_matching({"must": [{"key": "n", "range": {"lt": 12}}]}) == 12


def test_a_condition_sees_ids_payloads_and_texts_and_is_remembered_by_its_key(tmp_path: Path):
    collection = _collection(tmp_path / "docs", some_points(30))
    points, _ = collection.scroll(None, 30)
    word = points[4].text.split()[-1]

    def asked(seen: list[object]) -> Condition:
        def passes(point_id: int | str, payload: dict[str, Any], text: str) -> bool:
            seen.append((point_id, payload, text))
            return word in text

        return Condition(b"by its word", passes, reads_text=True)

    first: list[object] = []
    again: list[object] = []
    expected = sum(word in point.text for point in points)
    assert collection.count_matching(asked(first)) == expected > 0
    assert first == [(point.id, point.payload, point.text) for point in points]
    assert collection.count_matching(asked(again)) == expected
    assert again == []
    without_text = Condition(b"by its id", lambda point_id, _payload, text: point_id == points[7].id and not text)
    found = collection.scroll(None, 30, without_text)[0]
    assert [point.id for point in found] == [points[7].id]


@pytest.mark.parametrize("written", [0, 12, 40], ids=["frozen", "partly written since", "all written since"])
def test_points_without_words_are_not_put_behind_those_that_have_some(tmp_path: Path, written: int):
    vectors = clustered(40, seed=3)
    # every other point has no text; one has a title, which is words, too
    texts = ["" if n % 2 else f"a passage of its own, number {n}" for n in range(40)]
    points = [Point(n, vectors[n], {"title": "A harbour"} if n == 7 else {}, texts[n]) for n in range(40)]
    frozen = 40 - written
    write_snapshot(tmp_path / "docs", points[:frozen], space="toy", dimensions=16)
    library = Library(tmp_path)
    library.refresh()
    if written:
        library.write("docs", [Upsert(tuple(points[frozen:]))], space="toy")
    docs = library.get("docs")
    assert docs is not None
    lone = docs.search_fused(vectors[9], "a passage of its own", 3)
    assert (lone[0].id, lone[0].score) == (9, pytest.approx(1.0))
    # where words tell one point from another they do, and among those with words as ever
    assert docs.search_fused(vectors[9], "number 12 passage", 40)[0].score <= 1.0
    best = docs.search_fused(vectors[12], "number 12", 40)
    assert (best[0].id, best[0].score) == (12, pytest.approx(1.0))
    titled = {hit.id: hit.score for hit in docs.search_fused(vectors[7], "passage", 40)}
    assert titled[7] == pytest.approx(0.5), "it has words, and not this one"
    # nothing has the word: the vectors alone say the order
    assert ids(docs.search_fused(vectors[9], "xylophone", 9)) == ids(docs.search(vectors[9], 9))
