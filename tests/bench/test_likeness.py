"""The figures of likeness on real questions keep to their bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.likeness import SQUAD, Squad, as_shipped, by_threshold, remembering, retrieval
from understudy.models.embedder import load


@pytest.mark.slow
@pytest.mark.beside("shared/data/squad-dev")
def test_what_is_given_is_wrong_in_at_most_two_percent_where_thresholds_are_in_a_quarter_and_no_recall_is_lost(
    tmp_path: Path,
):
    embedder = load(None, tmp_path, "cpu")
    vectors = remembering(embedder.embed)
    squad = Squad(SQUAD, 1200, 240)
    once, again = squad.as_asked(), squad.asked_again(2000)
    thresholds = by_threshold(squad, once, vectors)
    assert thresholds[0.9].wrong > 0.25 * thresholds[0.9].served > 0
    for stream in (once, again):
        for context in (False, True):
            figure = as_shipped(squad, stream, vectors, context=context)
            assert figure.wrong <= 0.02 * figure.served
    assert as_shipped(squad, again, vectors, context=True).served > 0.2 * len(again)
    passages = embedder.embed([passage["text"] for passage in squad.passages], "document")
    found = retrieval(squad, again, vectors, passages)
    assert found.hit_share > 0.3
    assert found.given >= found.own - 0.005
