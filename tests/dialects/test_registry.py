"""Dialects are known by name, and loaded when they are first spoken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from understudy.proxy.dialects import DIALECTS, KINDS, naming_of


@pytest.mark.parametrize("name", list(DIALECTS))
def test_each_is_found_under_its_own_name_and_made_once(name: str):
    assert DIALECTS[name].name == name
    assert DIALECTS[name] is DIALECTS[name]


def test_what_a_dialect_speaks_is_known_without_it():
    assert list(KINDS) == list(DIALECTS)
    assert "telepathy" not in DIALECTS
    assert naming_of("chroma") is DIALECTS["chroma"]
    assert naming_of("qdrant") is None
    with pytest.raises(KeyError):
        DIALECTS["telepathy"]


def test_a_sidecar_loads_no_dialect_that_no_route_of_its_speaks():
    told = (
        "import sys, understudy.proxy.server, understudy.proxy.dialects as d; d.DIALECTS['tei'];"
        "print(*sorted(m.rpartition('.')[2] for m in sys.modules if m.startswith(d.__name__ + '.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.split()
    assert "tei" in loaded
    assert not {"elasticsearch", "qdrant", "chroma", "weaviate", "milvus", "pinecone", "anthropic"} & set(loaded)
