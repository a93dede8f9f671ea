"""A model made here, run by the real onnxruntime-genai: its words, its ends, and what is said of what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kit.tiny_llm import ANSWER, make_llm
from understudy.models.decoder import Decoder, Ended, Stops, TooLong, Wanted
from understudy.models.errors import ModelError

pytest.importorskip("onnxruntime_genai", reason="needs the extra `genai`")

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say “é”."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llm(tmp_path_factory.mktemp("llm") / "tiny")


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder(folder)


def prompt_tokens() -> int:
    # bytes, a mark before and one behind each, and the assistant's
    return sum(len(each["content"].encode()) + 2 for each in ASKED) + 1


def test_it_says_its_text_token_by_token_and_why_it_ended(decoder: Decoder):
    assert (decoder.name, decoder.context_tokens) == ("tiny", 256)
    *words, end = decoder.answer(ASKED, Wanted(100))
    assert words == list(ANSWER)
    assert end == Ended("stop", prompt_tokens(), len(ANSWER) + 1)


@pytest.mark.parametrize(("tokens_max", "reason"), [(3, "length"), (16, "length"), (17, "stop")])
def test_a_ceiling_is_kept_and_told(decoder: Decoder, tokens_max: int, reason: str):
    *words, end = decoder.answer(ASKED, Wanted(tokens_max))
    assert "".join(map(str, words)) == ANSWER[:tokens_max]
    assert isinstance(end, Ended)
    assert (end.reason, end.completion_tokens) == (reason, tokens_max)


def test_a_stop_sequence_ends_it_and_is_not_told(decoder: Decoder):
    *words, end = decoder.answer(ASKED, Wanted(100, stop=("xyz", "efg")))
    assert ("".join(map(str, words)), end) == ("abcd", Ended("stop", prompt_tokens(), 7))


def test_what_is_held_for_a_stop_sequence_that_never_comes_is_told_last(decoder: Decoder):
    *words, _ = decoder.answer(ASKED, Wanted(100, stop=("opq",)))
    assert "".join(map(str, words)) == ANSWER


@pytest.mark.parametrize("wanted", [Wanted(9, 0.0), Wanted(9, 0.7, 0.9, 40, 7), Wanted(9, top_p=0.5)])
def test_how_tokens_are_chosen_is_told_to_the_model(decoder: Decoder, wanted: Wanted):
    *words, _ = decoder.answer(ASKED, wanted)
    assert "".join(map(str, words)) == ANSWER[:9]


def test_nothing_is_said_to_somebody_who_has_left(tmp_path: Path):
    decoder, heard = Decoder(make_llm(tmp_path, goes_round=True)), list[str | Ended]()
    for piece in decoder.answer(ASKED, Wanted(200), lambda: len(heard) >= 5):
        heard.append(piece)
    assert heard == [*"abcde", Ended("left", prompt_tokens(), 5)]


def test_a_prompt_without_room_for_an_answer_is_too_long(tmp_path: Path):
    decoder = Decoder(make_llm(tmp_path, goes_round=True, context_tokens=40))
    with pytest.raises(TooLong, match="context 40"):
        list(decoder.answer([{"role": "user", "content": "x" * 40}], Wanted(5)))
    *words, end = decoder.answer([{"role": "user", "content": "x" * 30}], Wanted(500))
    assert isinstance(end, Ended)
    assert (len(words), end.reason) == (7, "length")


def test_missing_and_broken_weights_are_said_with_their_place(tmp_path: Path):
    with pytest.raises(ModelError, match="no weights here"):
        Decoder(tmp_path)
    (tmp_path / "genai_config.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON"):
        Decoder(tmp_path)
    make_llm(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="can't be loaded") as caught:
        Decoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_package_is_said_with_what_brings_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(ModelError, match=r"understudy\[genai\]"):
        Decoder(folder)


@pytest.mark.parametrize(
    ("stops", "pieces", "told"),
    [
        ((), ["a", "b"], "ab"),
        (("END",), ["a E", "N", "D b"], "a "),
        (("END",), ["a EN", "X"], "a ENX"),
        (("ab", "b"), ["xa", "b"], "x"),
        (("aab",), ["a", "a", "a", "b"], "a"),
        (("",), ["a"], "a"),
    ],
)
def test_words_pass_up_to_a_stop_sequence_however_they_are_cut(stops: tuple[str, ...], pieces: list[str], told: str):
    taken = Stops(stops)
    text = ""
    for piece in pieces:
        text += taken.take(piece)
        if taken.reached:
            break
    assert text + taken.rest() == told
