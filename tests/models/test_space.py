"""Two vectors may be compared exactly when their spaces are one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.models.space import Space, canonical_name, same_space


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", True),
        ("ALL-MINILM-L6-V2", "all-minilm-l6-v2 ", True),
        ("models/org/all-MiniLM-L6-v2/", "all-MiniLM-L6-v2", True),
        ("all-MiniLM-L6-v2", "all-MiniLM-L12-v2", False),
        ("nomic-embed-text:v1", "nomic-embed-text:v1.5", False),
        ("text-embedding-3-small", "text-embedding-3-large", False),
        ("", "", False),
        ("org/", "", False),
    ],
)
def test_a_model_is_known_by_its_name_whoever_publishes_it(a: str, b: str, same: bool) -> None:
    assert same_space(a, b) is same
    assert same_space(b, a) is same


def test_everything_that_changes_a_vector_changes_the_fingerprint() -> None:
    space = Space("org/Some-Model", 384)
    others = [
        replace(space, name="Some-Other"),
        replace(space, dimensions=768),
        replace(space, normalised=False),
        replace(space, query_prefix="query: "),
        replace(space, document_prefix="query: "),
        replace(space, revision="2"),
    ]
    assert len({space.fingerprint, *(other.fingerprint for other in others)}) == 7
    assert replace(space, name="some-model").fingerprint == space.fingerprint
    assert canonical_name("org/Some-Model") == "some-model"


def test_queries_and_documents_get_their_own_prefix() -> None:
    space = Space("e5", 384, query_prefix="query: ", document_prefix="passage: ")
    assert space.prefixed("why", "query") == "query: why"
    assert space.prefixed("so", "document") == "passage: so"
