"""What is known of a vector: exactly, normalised again, within bounds, and by its own tenant alone."""

from __future__ import annotations

import base64
import json
import random
from array import array
from dataclasses import dataclass

from understudy.policies.ledger import ENTRY_BYTES, TEXT_CHARS_MAX, Ledger


@dataclass
class Rules:
    entries_max: int = 1000
    bytes_max: int = 10_000_000


def vector(seed: int, dimensions: int = 1536) -> array[float]:
    rng = random.Random(seed)
    return array("f", [rng.gauss(0, 0.03) for _ in range(dimensions)])


def filled(count: int, rules: Rules | None = None, dimensions: int = 1536) -> Ledger:
    ledger = Ledger(rules or Rules())
    for n in range(count):
        ledger.remember(vector(n, dimensions).tobytes(), "a", f"text {n}", model="m")
    return ledger


def text_of(ledger: Ledger, given: array[float], tenant: bytes = b"") -> str | None:
    found = ledger.find(given.tobytes(), tenant)
    return None if found is None else found.text


def test_a_vector_is_known_again_after_json_and_after_base64():
    ledger = filled(50)
    by_json = array("f", json.loads(json.dumps(vector(7).tolist())))
    by_base64 = array("f", base64.b64decode(base64.b64encode(vector(8).tobytes())))
    assert (text_of(ledger, by_json), text_of(ledger, by_base64)) == ("text 7", "text 8")
    assert (ledger.found, ledger.near, ledger.missed) == (2, 0, 0)
    assert text_of(ledger, vector(99)) is None
    assert ledger.missed == 1


def test_a_vector_is_known_again_when_it_was_normalised_or_rounded_and_no_other_is_taken_for_it():
    for dimensions in (64, 384, 1536):
        ledger = filled(200, dimensions=dimensions)
        for n in range(200):
            given = vector(n, dimensions)
            length = sum(x * x for x in given) ** 0.5
            assert text_of(ledger, array("f", [x / length for x in given])) == f"text {n}"
            assert text_of(ledger, array("f", [round(x, 5) for x in given])) == f"text {n}"
            assert text_of(ledger, array("f", [-x for x in given])) is None
        assert text_of(ledger, vector(500, dimensions)) is None


def test_near_is_a_cosine_above_4_nines_and_not_one_of_3():
    ledger = filled(200)
    rng = random.Random(1)

    def noisy(n: int, cosine: float) -> array[float]:
        given = vector(n)
        length = sum(x * x for x in given) ** 0.5
        size = length * (1 / cosine**2 - 1) ** 0.5 / len(given) ** 0.5
        return array("f", [x + rng.gauss(0, size) for x in given])

    assert sum(text_of(ledger, noisy(n, 0.99999)) == f"text {n}" for n in range(200)) >= 198
    assert sum(text_of(ledger, noisy(n, 0.999)) is not None for n in range(200)) == 0


def test_a_tenant_finds_its_own_vectors_alone():
    ledger = Ledger(Rules())
    ledger.remember(vector(1).tobytes(), "a", "of one", b"one")
    ledger.remember(vector(1).tobytes(), "a", "of two", b"two")
    assert [text_of(ledger, vector(1), who) for who in (b"one", b"two", b"", b"three")] == [
        "of one",
        "of two",
        None,
        None,
    ]
    doubled = array("f", [2 * x for x in vector(1)])
    assert [text_of(ledger, doubled, who) for who in (b"one", b"two", b"")] == ["of one", "of two", None]


def test_the_latest_word_on_a_vector_counts_and_it_is_counted_once():
    ledger = Ledger(Rules())
    ledger.remember(vector(1).tobytes(), "a", "first")
    ledger.remember(vector(1).tobytes(), "a", "second")
    assert text_of(ledger, vector(1)) == "second"
    assert (len(ledger), ledger.bytes) == (1, ENTRY_BYTES + len("second"))


def test_the_ledger_is_bounded_in_entries_and_bytes_and_what_is_asked_for_again_stays():
    ledger = filled(10, Rules(entries_max=10))
    assert text_of(ledger, vector(0)) == "text 0"
    ledger.remember(vector(10).tobytes(), "a", "text 10")
    assert (len(ledger), ledger.evicted) == (10, 1)
    assert (text_of(ledger, vector(0)), text_of(ledger, vector(1))) == ("text 0", None)

    small = filled(100, Rules(bytes_max=5 * (ENTRY_BYTES + 8)))
    assert len(small) == 5
    assert small.bytes == sum(entry.size_bytes for entry in small) <= small.rules.bytes_max
    assert small.remember(vector(0).tobytes(), "a", "x", own=bytes(9 * ENTRY_BYTES)) is None
    small.clear()
    assert (len(small), small.bytes, text_of(small, vector(99))) == (0, 0, None)


def test_nothing_is_left_behind_of_entries_that_went():
    ledger = filled(500, Rules(entries_max=20))
    assert (len(ledger), len(ledger._bands)) == (20, 80)  # pyright: ignore[reportPrivateUsage]
    ledger.rules = Rules(entries_max=3)
    ledger.fit()
    assert (len(ledger), len(ledger._bands)) == (3, 12)  # pyright: ignore[reportPrivateUsage]


def test_a_text_too_long_is_kept_in_part_and_says_so():
    ledger = Ledger(Rules())
    entry = ledger.remember(vector(1).tobytes(), "a", "x" * (TEXT_CHARS_MAX + 1))
    assert entry is not None
    assert (len(entry.text), entry.is_cut) == (TEXT_CHARS_MAX, True)
    assert ledger.remember(b"", "a", "nothing") is None
    assert ledger.find(b"") is None
