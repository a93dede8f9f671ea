"""A model that changed behind its name is noticed, once it has been seen twice, and trusted again when it is back."""

from __future__ import annotations

import math
import random
from array import array

from understudy.policies.fingerprint import TEXTS, Fingerprint


def vectors(seed: int, turned_by: float = 0.0, dimensions: int = 64) -> list[array[float]]:
    """So many as there are texts; turned by an angle, their cosine to the others is its cosine."""
    rng = random.Random(seed)
    made: list[array[float]] = []
    for _ in TEXTS:
        one = [rng.gauss(0, 1) for _ in range(dimensions)]
        other = [rng.gauss(0, 1) for _ in range(dimensions)]
        along = sum(a * b for a, b in zip(one, other, strict=True)) / sum(a * a for a in one)
        across = [b - along * a for a, b in zip(one, other, strict=True)]
        size = math.sqrt(sum(a * a for a in one) / sum(b * b for b in across))
        turned = [math.cos(turned_by) * a + math.sin(turned_by) * size * b for a, b in zip(one, across, strict=True)]
        made.append(array("f", turned))
    return made


FIRST = vectors(1)


def test_the_first_measurement_is_the_baseline_and_the_same_again_is_the_same():
    heart = Fingerprint()
    assert heart.measured(FIRST, None, 0.999) == "first"
    assert (heart.state, heart.measured(FIRST, FIRST, 0.999)) == ("trusted", "same")
    # fp16, another batch, another machine: noise, and no other model
    assert heart.measured(vectors(1, math.acos(0.9995)), FIRST, 0.999) == "same"


def test_a_model_that_changed_is_quarantined_at_the_second_sight_and_comes_back_when_it_is_as_it_was():
    heart = Fingerprint()
    heart.measured(FIRST, None, 0.999)
    other = vectors(1, math.acos(0.99))
    assert [heart.measured(other, FIRST, 0.999) for _ in range(3)] == ["changed", "quarantined", "changed"]
    assert heart.is_quarantined
    assert heart.cosine is not None
    assert abs(heart.cosine - 0.99) < 1e-4
    assert heart.measured(FIRST, FIRST, 0.999) == "back"
    assert not heart.is_quarantined


def test_one_strange_answer_alone_quarantines_nobody():
    heart = Fingerprint()
    for _ in range(3):
        assert heart.measured(vectors(2), FIRST, 0.999) == "changed"
        assert heart.measured(FIRST, FIRST, 0.999) == "same"
    assert heart.state == "trusted"


def test_other_dimensions_fewer_vectors_and_zeros_are_another_model():
    for strange in (vectors(1, dimensions=32), FIRST[:2], [array("f", [0.0] * 64)] * 4):
        heart = Fingerprint()
        assert heart.measured(strange, FIRST, 0.999) == "changed"
        assert heart.cosine == 0.0
