"""What the local tier answers in Qdrant's words is what Qdrant's own engine answers, after the same writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dialects.qdrant_cases import Both


@pytest.mark.parametrize(
    ("seed", "distances"),
    [(3, ("Cosine", "Dot", "Euclid")), (4, ("Dot", "Cosine", "Cosine"))],
    ids=["mixed", "no euclid"],
)
def test_reads_after_writes_agree_with_qdrants_engine(tmp_path: Path, seed: int, distances: tuple[str, str, str]):
    tally = Both(tmp_path, seed, distances).run(700)
    assert tally.differing == []
    assert sum(tally.agreed.values()) > 550
    # of every kind there are some that both can answer
    assert min(tally.agreed.values()) >= 20
    assert len(tally.agreed) == 14
