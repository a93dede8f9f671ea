"""Services that answer wrongly are told from those that are well, and from those that were written to."""

from __future__ import annotations

import random
from array import array

import pytest

from understudy.policies.drift import (
    PAIRS_MAX,
    PAIRS_MIN,
    Ranking,
    Stand,
    Watched,
    cause,
    count_fault,
    embedding_fault,
    paired,
    searches_faults,
)


def vectors(count: int, dimensions: int, seed: int, length: float = 1.0) -> list[list[float]]:
    dice = random.Random(seed)
    made: list[list[float]] = []
    for _ in range(count):
        vector = [dice.gauss(0, 1) for _ in range(dimensions)]
        norm = sum(number * number for number in vector) ** 0.5
        made.append([length * number / norm for number in vector])
    return made


def test_the_same_vectors_are_well_and_so_are_ten_thousand_checks_with_the_noise_of_float16():
    stored = vectors(8, 32, 1)
    assert embedding_fault(stored, stored) is None
    dice = random.Random(2)
    for _ in range(10_000):
        # float16 keeps eleven bits: each number is off by a thousandth of itself at most
        noisy = [[number * (1 + dice.uniform(-1e-3, 1e-3)) for number in vector] for vector in stored]
        assert embedding_fault(noisy, stored) is None


@pytest.mark.parametrize(
    ("got", "kind"),
    [
        (vectors(7, 32, 1), "embedding_shape"),
        (vectors(8, 31, 1), "embedding_dimension"),
        ([*vectors(8, 32, 1)[:7], [float("nan")] * 32], "embedding_not_finite"),
        (vectors(8, 32, 1, length=1.02), "embedding_norm"),
        (vectors(8, 32, 99), "embedding_drift"),
        ([*vectors(8, 32, 1)[:7], vectors(1, 32, 99)[0]], "embedding_drift"),
    ],
)
def test_what_is_wrong_with_vectors_has_a_name(got: list[list[float]], kind: str):
    assert embedding_fault(got, vectors(8, 32, 1)) == kind


def test_vectors_that_never_had_unit_length_need_none():
    stored = vectors(8, 32, 1, length=7.0)
    longer = [[1.5 * number for number in vector] for vector in stored]
    assert embedding_fault(longer, stored) is None


# --- searches --------------------------------------------------------------------------------------------------------


def ids(*numbers: int) -> list[str]:
    return [str(number) for number in numbers]


MIRROR = ids(*range(20))


def known(point: str) -> bool:
    return int(point) < 100


def test_lists_that_are_the_same_agree_in_everything():
    scores = [1 - at / 100 for at in range(20)]
    pair = paired(Ranking(MIRROR[:10], scores[:10]), Ranking(MIRROR, scores), known)
    assert (pair.overlap, pair.top_1, pair.empty, pair.shift, pair.missing) == (1.0, True, False, 0.0, ())
    assert pair.rbo == pytest.approx(1.0)


def test_new_points_take_places_and_are_no_fault():
    live = ids(900, 0, 1, 2, 901, 3, 4, 5, 6, 7)
    pair = paired(Ranking(live), Ranking(MIRROR), known)
    assert (pair.overlap, pair.top_1, pair.ingested, pair.missing) == (1.0, True, 2, ())
    assert paired(Ranking(ids(*range(900, 910))), Ranking(MIRROR), known).overlap == 1.0


def test_points_that_are_due_and_do_not_come_are_named():
    live = ids(0, 1, 3, 4, 5, 6, 7, 9, 10, 11)
    pair = paired(Ranking(live), Ranking(MIRROR), known)
    assert pair.overlap == pytest.approx(0.8)
    assert pair.missing == ("2", "8")
    assert paired(Ranking(ids(5, 900)), Ranking(MIRROR), known).top_1 is False


def test_nothing_found_where_the_mirror_finds_something_is_empty_and_nothing_where_nothing_is_well():
    assert paired(Ranking([]), Ranking(MIRROR), known).empty
    nothing = paired(Ranking([]), Ranking([]), known)
    assert (nothing.empty, nothing.overlap, nothing.top_1) == (False, 1.0, True)
    assert searches_faults([nothing] * 20) == ()


def test_other_scores_for_the_same_points_are_told_though_the_order_is_the_same():
    live = Ranking(MIRROR[:10], [0.9 - 0.05 - at / 100 for at in range(10)])
    pair = paired(live, Ranking(MIRROR, [0.9 - at / 100 for at in range(20)]), known)
    assert pair.shift == pytest.approx(0.05)
    assert searches_faults([pair] * 3) == ("retrieval_scores",)


def test_three_tenths_of_the_points_lost_are_found_in_one_check_and_none_in_a_thousand_that_lost_none():
    dice = random.Random(5)
    for trial in range(1_000):
        lost = set(ids(*dice.sample(range(100), 30)))
        pairs = []
        for _ in range(PAIRS_MIN):
            mirrored = [str(point) for point in dice.sample(range(100), 20)]
            live = [point for point in mirrored if point not in lost][:10] if trial % 2 else mirrored[:10]
            pairs.append(paired(Ranking(live), Ranking(mirrored), known))
        assert bool(searches_faults(pairs)) is bool(trial % 2)
    assert count_fault(70, 100) == "retrieval_lost"
    assert count_fault(96, 100) is None
    assert count_fault(150, 100) is None


def test_why_points_do_not_come_is_told_by_what_the_database_has_of_them():
    assert cause({"1": "gone", "2": "gone", "3": "there"}) == "retrieval_lost"
    assert cause({"1": "altered", "2": "altered", "3": "gone"}) == "retrieval_altered"
    assert cause({"1": "there"}) == "retrieval_index"
    assert cause({"1": "there", "2": "gone"}) == "retrieval_lost"
    assert cause({}) is None


def test_pairs_made_while_writes_were_on_their_way_count_for_nothing():
    watched, bad = Watched(), paired(Ranking(ids(50)), Ranking(MIRROR), known)
    assert not any(watched.add(bad, Stand(changed_at=7.0), 7.0) for _ in range(100))
    assert not any(watched.add(bad, Stand(is_behind=True), 7.0) for _ in range(100))
    assert watched.fates == {"compared": 0, "moving": 200}
    assert watched.take() == ((), ())


def test_a_check_is_due_after_twenty_pairs_takes_them_and_is_bounded_where_nobody_checks():
    watched, bad = Watched(), paired(Ranking(ids(50)), Ranking(MIRROR), known)
    due = [watched.add(bad, Stand(changed_at=6.0), 7.0) for _ in range(PAIRS_MIN)]
    assert due == [False] * (PAIRS_MIN - 1) + [True]
    faults, missing = watched.take()
    assert faults[0] == "retrieval_overlap"
    assert set(missing) == set(MIRROR[:10])
    assert watched.take() == ((), ())
    for _ in range(3 * PAIRS_MAX):
        watched.add(bad, Stand(changed_at=6.0), 7.0)
    assert len(watched.pairs) == PAIRS_MAX


def test_vectors_may_be_packed_as_they_come_from_base64():
    stored = vectors(8, 32, 1)
    assert embedding_fault([array("f", vector) for vector in stored], stored) is None
