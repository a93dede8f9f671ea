"""Maps between made-up spaces: what the reference found on SQuAD holds of them too, and bad ones are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from understudy.models.bridge import (
    AGREEMENT_MIN,
    PAIRS_MAX,
    PAIRS_MIN,
    SANITY_MIN,
    Bridge,
    Pair,
    Reservoir,
    Vectors,
    agreement,
    fitted,
    judged,
    refusal,
    sanity,
)

LOCAL, OTHER, DOCUMENTS, QUESTIONS = 96, 256, 2_400, 600


def unit(rows: np.ndarray) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class World:
    """Documents around topics, and questions near documents, as a local model places them: as a real one's vectors,
    they lie more along some directions than along others."""

    def __init__(self, seed: int = 1) -> None:
        self.dice = np.random.default_rng(seed)
        weights = 1 / np.sqrt(np.arange(1, LOCAL + 1))
        topics = self.dice.normal(size=(60, LOCAL)) * weights
        own = self.dice.normal(size=(DOCUMENTS, LOCAL)) * weights
        plain = topics[self.dice.integers(60, size=DOCUMENTS)] + own
        self.documents = unit(plain)
        self.right = self.dice.integers(DOCUMENTS, size=QUESTIONS)
        noise = self.dice.normal(size=(QUESTIONS, LOCAL)) * weights
        self.questions = unit(plain[self.right] + 0.8 * noise)

    def seen_by(self, other: Callable[[np.ndarray], np.ndarray]) -> tuple[Vectors, Vectors]:
        """Documents and questions as another model places them."""
        return unit(other(self.documents)), unit(other(self.questions))

    def recall(self, questions: np.ndarray, documents: np.ndarray) -> float:
        found = nearest_in(documents)(questions.astype(np.float32))
        return float(np.mean([right in ten for right, ten in zip(self.right.tolist(), found, strict=True)]))


def nearest_in(documents: np.ndarray) -> Callable[[Vectors], list[list[int]]]:
    return lambda rows: np.argsort(-(rows @ documents.T), axis=1, kind="stable")[:, :10].tolist()


def strong(dice: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A random net of the local vectors, with noise of its own: another good model."""
    weights = 4 * dice.normal(size=(LOCAL, OTHER)) / np.sqrt(LOCAL)

    def other(rows: np.ndarray) -> np.ndarray:
        bent = np.tanh(rows @ weights * np.sqrt(LOCAL) / 4)
        return bent + 0.3 * bent.std() * dice.normal(size=bent.shape)

    return other


def pairs_of(local: np.ndarray, other: np.ndarray, *, are_documents: bool = True) -> list[Pair]:
    return [Pair(one, two, are_documents) for one, two in zip(local, other, strict=True)]


def test_a_thousand_pairs_keep_nearly_all_of_the_recall_and_a_vector_that_is_not_mapped_finds_nothing():
    world = World()
    documents, questions = world.seen_by(strong(world.dice))
    native = world.recall(questions, documents)
    padded = np.pad(world.questions, ((0, 0), (0, OTHER - LOCAL)))
    assert world.recall(padded, documents) < 0.05 < 0.8 < native
    kept: list[float] = []
    for count in (30, 300, 1_000):
        bridge = fitted(pairs_of(world.documents[:count], documents[:count]))
        kept.append(world.recall(bridge.mapped(world.questions), documents) / native)
    assert kept == sorted(kept)
    assert kept[-1] >= 0.95


def test_procrustes_beats_ridge_where_pairs_are_few():
    world = World(2)
    documents, questions = world.seen_by(strong(world.dice))
    for count in (60, 120):
        bridge = fitted(pairs_of(world.documents[:count], documents[:count]))
        rows = np.c_[world.documents[:count], np.ones(count)]
        ridge = np.linalg.solve(rows.T @ rows + 0.1 * np.eye(LOCAL + 1), rows.T @ documents[:count])
        ours = world.recall(bridge.mapped(world.questions), documents)
        assert ours > world.recall(unit(np.c_[world.questions, np.ones(QUESTIONS)] @ ridge), documents)
    assert questions.shape == (QUESTIONS, OTHER)


def test_a_rotation_into_more_dimensions_is_found_again_exactly_and_into_fewer_nearly():
    world = World(3)
    turn, _ = np.linalg.qr(world.dice.normal(size=(OTHER, OTHER)))
    moved = (world.documents @ turn[:LOCAL] + 3.0).astype(np.float32)
    bridge = fitted(pairs_of(world.documents[:500], moved[:500]))
    assert np.allclose(bridge.mapped(world.documents[500:]), moved[500:], atol=1e-4)
    fewer, _ = np.linalg.qr(world.dice.normal(size=(LOCAL, 32)))
    down = (world.documents @ fewer).astype(np.float32)
    bridge = fitted(pairs_of(world.documents[:500], down[:500]))
    assert bridge.mapped(world.documents[500:]).shape == (DOCUMENTS - 500, 32)
    assert np.corrcoef(bridge.mapped(world.documents[500:]).ravel(), down[500:].ravel())[0, 1] > 0.85


def test_the_nearness_of_mapped_vectors_says_nothing_of_what_they_find_and_agreement_does():
    world = World(4)
    # all vectors lie in one narrow cone: whatever is near its middle is near to everything
    cone = np.zeros(OTHER)
    cone[0] = 6.0
    other = strong(world.dice)
    noise: Callable[[np.ndarray], np.ndarray] = lambda rows: unit(world.dice.normal(size=(len(rows), OTHER)))  # noqa: E731
    documents, questions = world.seen_by(lambda rows: cone + noise(rows))
    bridge = fitted(pairs_of(world.documents[:1_000], documents[:1_000]))
    cosines = np.sum(bridge.mapped(world.questions) * questions, axis=1)
    assert cosines.mean() > 0.9
    held_out = pairs_of(world.questions, questions, are_documents=False)
    assert agreement(bridge, held_out, nearest_in(documents)) < 0.1
    good, asked = world.seen_by(other)
    fine = fitted(pairs_of(world.documents[:1_000], good[:1_000]))
    held_out = pairs_of(world.questions, asked, are_documents=False)
    assert agreement(fine, held_out, nearest_in(good)) >= AGREEMENT_MIN


def test_the_more_two_spaces_differ_the_less_they_agree_and_the_less_recall_is_kept():
    world = World(5)
    other = strong(world.dice)
    agreed: list[float] = []
    kept: list[float] = []
    for noise in (0.0, 0.05, 0.1, 0.2):

        def noisy(rows: np.ndarray, noise: float = noise) -> np.ndarray:
            # what the other model sees in a text, and the local one does not
            return unit(other(rows)) + noise * world.dice.normal(size=(len(rows), OTHER))

        documents, questions = world.seen_by(noisy)
        bridge = fitted(pairs_of(world.documents[:1_500], documents[:1_500]))
        held_out = pairs_of(world.questions, questions, are_documents=False)
        agreed.append(agreement(bridge, held_out, nearest_in(documents)))
        kept.append(world.recall(bridge.mapped(world.questions), documents))
    assert agreed == sorted(agreed, reverse=True)
    assert kept == sorted(kept, reverse=True)
    assert agreed[0] >= AGREEMENT_MIN > agreed[-1]


# --- is it believed? -------------------------------------------------------------------------------------------------


def words_of(world: World) -> list[list[int]]:
    """What a search by words finds: fifty, by another view of the same texts."""
    view = world.questions + 0.3 * world.dice.normal(size=world.questions.shape) / np.sqrt(LOCAL)
    return np.argsort(-(view @ world.documents.T), axis=1)[:, :50].tolist()


def test_a_space_that_finds_nothing_itself_is_not_sane_however_well_it_is_matched():
    world = World(6)
    turn, _ = np.linalg.qr(world.dice.normal(size=(LOCAL, LOCAL)))
    documents, questions = world.seen_by(lambda rows: rows @ turn)
    bridge = fitted(pairs_of(world.documents[:1_000], documents[:1_000]))
    agreed = agreement(bridge, pairs_of(world.questions, questions, are_documents=False), nearest_in(documents))
    assert agreed > 0.99, "it is matched as well as can be"
    flags = [False] * QUESTIONS
    found = nearest_in(documents)(questions)
    sane = sanity(found, words_of(world), flags)
    # the same vectors, of texts that have nothing to do with them
    insane = sanity(found, [list(range(at, at + 50)) for at in range(QUESTIONS)], flags)
    assert insane < SANITY_MIN <= sane
    filled = reservoir(PAIRS_MIN)
    assert "has the words asked for" in judged(bridge, filled, agreed, insane).reason
    standing = judged(bridge, filled, agreed, sane)
    assert (standing.reason, standing.agreement, standing.sanity) == ("", agreed, sane)
    assert standing.version == bridge.version
    assert "of what true ones find" in judged(bridge, filled, AGREEMENT_MIN - 0.01, sane).reason


def test_documents_are_not_asked_whether_they_find_themselves_and_questions_are_asked_apart():
    found = [[at, 100 + at] for at in range(40)]
    itself_alone = [[at, 999] for at in range(40)]
    assert sanity(found, itself_alone, [True] * 40) == 0.0
    assert sanity(found, found, [True] * 40) == 1.0
    mixed = [*found, *found]
    assert sanity(mixed, [*found, *itself_alone], [True] * 40 + [False] * 40) == 0.5
    assert sanity([], [], []) == 0.0


def reservoir(count: int, share: float = 0.8, seed: int = 7) -> Reservoir:
    dice = np.random.default_rng(seed)
    made = Reservoir(lambda: float(dice.random()))
    rows = dice.normal(size=(count, 8)).astype(np.float32)
    for at, row in enumerate(rows):
        made.add(Pair(row, row[:4], at < share * count))
    return made


def test_fewer_than_a_thousand_pairs_or_too_few_documents_make_no_map_and_the_reason_says_so():
    assert refusal(reservoir(PAIRS_MIN - 1)) == "999 pairs are known, 1000 are needed"
    assert "documents, 50% are needed" in refusal(reservoir(2_000, share=0.3))
    assert refusal(reservoir(2_000)) == ""
    few = reservoir(1_000, seed=8)
    said = refusal(few)
    assert (said == "") is (len(few.held_out) >= 200), "whether a fifth of a thousand is two hundred is chance"


def test_the_reservoir_is_bounded_fair_and_holds_a_fifth_out_of_what_it_fits_to():
    made = reservoir(20_000)
    assert (len(made.fitting), len(made.held_out)) == (4 * PAIRS_MAX // 5, PAIRS_MAX // 5)
    late = sum(not pair.is_document for pair in made.fitting) / len(made.fitting)
    assert late == pytest.approx(0.2, abs=0.03), "the last fifth of what came has a fifth of the places"
    fitting = {pair.local.tobytes() for pair in made.fitting}
    assert not fitting & {pair.local.tobytes() for pair in made.held_out}
    one = made.fitting[0]
    assert not made.add(one), "a text that is there already is not counted twice"
    made.clear()
    assert (len(made), made.add(one)) == (0, True)


def test_the_same_map_has_the_same_version_and_another_another():
    world = World(9)
    documents, _ = world.seen_by(strong(world.dice))
    versions = {fitted(pairs_of(world.documents[:count], documents[:count])).version for count in (100, 100, 101)}
    assert len(versions) == 2


def test_mapped_vectors_have_unit_length_only_where_the_other_models_have():
    world = World(10)
    documents, _ = world.seen_by(strong(world.dice))
    bridge: Bridge = fitted(pairs_of(world.documents[:300], documents[:300]))
    assert np.allclose(np.linalg.norm(bridge.mapped(world.questions), axis=1), 1, atol=1e-5)
    longer = fitted(pairs_of(world.documents[:300], 5 * documents[:300]))
    assert np.linalg.norm(longer.mapped(world.questions), axis=1).mean() > 3
