"""Sets of numbers, without numpy's own ways, which keep the interpreter's lock."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

from tests.kit.processes import REPOSITORY
from understudy.indexes.arrays import among, distinct

SETS = re.compile(r"np\.(unique|isin|in1d|setdiff1d|intersect1d|union1d|ma)\(")


@pytest.mark.parametrize("count", [0, 1, 2, 5_000])
def test_what_is_distinct_is_what_numpy_says_is_unique(count: int):
    values = np.random.default_rng(1).integers(0, 1 + count // 3, count)
    np.testing.assert_array_equal(distinct(values), np.unique(values))


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.float64])
@pytest.mark.parametrize(("asked", "known"), [(0, 5), (5, 0), (1, 1), (7_000, 900), (100, 6_000)])
def test_what_is_among_others_is_what_numpy_says_is_in_them(dtype: type, asked: int, known: int):
    dice = np.random.default_rng(2)
    values, others = dice.integers(0, 3_000, asked).astype(dtype), dice.integers(0, 3_000, known).astype(dtype)
    np.testing.assert_array_equal(among(values, others), np.isin(values, others))
    np.testing.assert_array_equal(among(values, np.sort(others), is_sorted=True), np.isin(values, others))


def test_numbers_at_the_ends_of_their_type_are_told_apart():
    least, most = np.uint64(0), np.uint64(2**64 - 1)
    assert among(np.array([least, most]), np.array([most])).tolist() == [False, True]
    assert distinct(np.array([most, least, most])).tolist() == [0, 2**64 - 1]


def test_nothing_that_a_sidecar_runs_asks_numpy_for_sets():
    folders = [REPOSITORY / "indexes", REPOSITORY / "proxy"]
    found = [path.name for folder in folders for path in folder.rglob("*.py") if SETS.search(path.read_text("utf-8"))]
    assert found == []


OPENED = """
import sys
from pathlib import Path
import numpy as np
from understudy.indexes.library import Library
from understudy.indexes.points import Point
from understudy.indexes.snapshot import write_snapshot
from understudy.indexes.writes import Upsert

folder = Path(sys.argv[1])
points = [Point(number, np.eye(8, dtype=np.float32)[number % 8], {"n": number}) for number in range(50)]
write_snapshot(folder / "docs", points, space="", dimensions=8, graph=True)
collection = Library(folder, exact_below=1).open("docs")
Library(folder, exact_below=1).write("docs", [Upsert((points[3],))])
collection.search(points[3].vector, 3, filter={"must_not": [{"key": "n", "match": {"except": [1, 2]}}]})
collection.worded_share()
print("numpy.ma" in sys.modules)
"""


def test_a_collection_is_opened_and_asked_without_numpys_masked_arrays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"
