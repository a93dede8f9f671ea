"""Token ids are read as text by a table of byte strings, and what is none of it is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from understudy.models.vocabulary import Vocabulary

WORDS = [b"Ref", b"unds", b" take", b" fourteen", b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9", b"."]


def vocabulary(tmp_path: Path, text: bytes | None = None) -> Vocabulary:
    lines = b"\n".join(base64.b64encode(word) + b" %d" % rank for rank, word in enumerate(WORDS))
    path = tmp_path / "toy.tiktoken"
    path.write_bytes(lines + b"\n" if text is None else text)
    return Vocabulary(path)


def test_tokens_are_read_as_text_also_where_a_letter_is_two_of_them(tmp_path: Path):
    known = vocabulary(tmp_path)
    assert not known.is_loaded
    assert known.decode([0, 1, 2, 3, 8]) == "Refunds take fourteen."
    assert known.is_loaded
    assert known.decode([4, 5, 6, 7]) == "😀é"
    assert known.decode([]) == ""
    # a text cut in the middle of a letter
    assert known.decode([0, 4]) == "Ref\ufffd"


def test_a_token_that_is_not_in_the_table_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no token has the id 99"):
        vocabulary(tmp_path).decode([0, 99])


@pytest.mark.parametrize(
    "text", [b"", b"no table", b"!! 1\n", b"aGk= x\n", b"aGk= -1\n", b"aGk= 99999999\n", b"\xff\xfe"]
)
def test_what_is_no_table_is_told_so(tmp_path: Path, text: bytes):
    with pytest.raises(ValueError, match="vocabulary"):
        vocabulary(tmp_path, text).decode([0])


def test_a_file_that_is_not_there_is_told_so(tmp_path: Path):
    with pytest.raises(ValueError, match="can't be read"):
        Vocabulary(tmp_path / "nothing").decode([0])
