"""Chunks: what a reader would cut, the same every time, and a clear word about what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from understudy.indexes import knowledge_files
from understudy.indexes.chunks import CHARS_MAX, TARGET_CHARS, Passage, chunk_files, sentences
from understudy.indexes.faults import BadFile


def _chunks(folder: Path, name: str, text: str) -> list[Passage]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return list(chunk_files([path]))


GUIDE = """\
---
layout: page
---
Before any heading.

# Guide #

An opening
of two lines.

## Ports

The door listens on 8080.

```bash
# not a heading
understudy run

understudy explain
```

- one
- two

### Admin

The admin port is 8081.

Limits
------

Every queue has a bound.

| a | b |
| --- | --- |
| 1 | 2 |

## Empty

# Other
Text right under a heading.
~~~
fence of tildes, never closed
## still code
"""


def test_markdown_is_cut_at_headings_whose_path_is_the_title(tmp_path: Path):
    assert [(one.title, one.text) for one in _chunks(tmp_path, "guide.md", GUIDE)] == [
        ("guide", "Before any heading."),
        ("Guide", "An opening\nof two lines."),
        (
            "Guide > Ports",
            "The door listens on 8080.\n\n"
            "```bash\n# not a heading\nunderstudy run\n\nunderstudy explain\n```\n\n- one\n- two",
        ),
        ("Guide > Ports > Admin", "The admin port is 8081."),
        ("Guide > Limits", "Every queue has a bound.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("Other", "Text right under a heading.\n\n~~~\nfence of tildes, never closed\n## still code"),
    ]


def test_plain_text_is_cut_at_blank_lines_and_small_paragraphs_are_joined(tmp_path: Path):
    long = "A sentence of some length about breakers. " * 15
    texts = [one.text for one in _chunks(tmp_path, "notes.txt", f"One.\r\n\r\nTwo.\n \nThree.\n\n{long}\n\n{long}")]
    assert texts == ["One.\n\nTwo.\n\nThree.\n\n" + long.strip(), long.strip()]


def test_a_long_paragraph_is_cut_between_sentences(tmp_path: Path):
    said = [f"Sentence number {number} says something, e.g. about Dr. Who, or not." for number in range(60)]
    texts = [one.text for one in _chunks(tmp_path, "long.md", "# T\n" + " ".join(said))]
    assert len(texts) > 3
    assert " ".join(texts) == " ".join(said)
    assert all(text.endswith("or not.") and text.startswith("Sentence number") for text in texts)
    assert all(len(text) <= TARGET_CHARS for text in texts[:-1])


def test_a_long_code_block_is_cut_only_between_lines(tmp_path: Path):
    lines = [f"    step_{number} = run(step_{number - 1})" for number in range(90)]
    texts = [one.text for one in _chunks(tmp_path, "code.md", "```\n" + "\n".join(lines) + "\n```\n")]
    assert len(texts) > 2
    assert "\n".join(texts).splitlines() == ["```", *lines, "```"]


def test_a_small_rest_joins_the_piece_before_it(tmp_path: Path):
    body = "A paragraph that fills most of the room there is. " * 15
    (one,) = _chunks(tmp_path, "rest.txt", f"{body}\n\nAnd a last word.")
    assert one.text.endswith("And a last word.")
    assert len(one.text) > TARGET_CHARS - 60


@settings(derandomize=True, max_examples=150, deadline=None)
@given(some.text(alphabet="ab .!?\n#`-=|\u3002\u00e9", max_size=6_000), some.sampled_from(["x.md", "x.txt"]))
def test_no_piece_is_too_long_and_nothing_is_lost(text: str, name: str):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        found = _chunks(Path(folder), name, text)
    assert all(0 < len(one.text) <= CHARS_MAX + TARGET_CHARS for one in found)
    assert all(len(one.text) <= CHARS_MAX for one in found)
    kept = "".join("".join(one.text.split()) for one in found)
    if name == "x.txt":
        assert kept == "".join(text.split())


def test_sentences_end_where_a_reader_would_end_them():
    text = 'He said "Stop." Then J. Smith, Prof. of 3.14, left! Why? See e.g. Fig. 2. 日本語。次の文。 end'
    assert sentences(text) == [
        'He said "Stop."',
        "Then J. Smith, Prof. of 3.14, left!",
        "Why?",
        "See e.g. Fig. 2.",
        "日本語。",
        "次の文。",
        "end",
    ]


JSONL = """\
{"text": "One.", "id": 7, "lang": "en"}

{"text": "Two.", "title": "T", "source": "https://example.org/two", "tags": ["a"]}
{"text": "Three.", "id": "three", "title": null}
"""


def test_a_record_is_a_passage_with_its_own_id_and_payload(tmp_path: Path):
    one, two, three = _chunks(tmp_path, "records.jsonl", JSONL)
    assert (one.id, one.source, one.title, one.text) == (7, "records.jsonl", "", "One.")
    assert one.payload == {"lang": "en", "source": "records.jsonl"}
    assert (two.source, two.title) == ("https://example.org/two", "T")
    assert two.payload == {"title": "T", "source": "https://example.org/two", "tags": ["a"]}
    assert isinstance(two.id, str)
    assert three.id == "three"


def test_ids_are_the_same_every_time_and_wherever_the_files_lie(tmp_path: Path):
    here = _chunks(tmp_path / "here", "docs/guide.md", GUIDE)
    there = _chunks(tmp_path / "there", "docs/guide.md", GUIDE)
    assert [(one.id, one.source) for one in here] == [(one.id, one.source) for one in there]
    assert len({one.id for one in here}) == len(here)
    # of a folder the sources start with its name
    sources = {one.source for one in chunk_files([tmp_path / "here" / "docs"])}
    assert sources == {"docs/guide.md"}


def test_folders_are_read_in_order_without_hidden_or_unknown_files(tmp_path: Path):
    for name in ("b.md", "a/z.txt", "a/.hidden.md", ".git/x.md", "image.png", "c.jsonl"):
        path = tmp_path / "kb" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}')
    assert [one.source for one in chunk_files([tmp_path / "kb"])] == ["kb/b.md", "kb/c.jsonl", "kb/a/z.txt"]


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": }\n', ":2: "),
        ("x.jsonl", b'{"text": "a"}\n\n["text"]\n', ":3: Expected `object`"),
        ("x.jsonl", b'{"title": "a"}\n', ":1: Object missing required field `text`"),
        ("x.jsonl", b'{"text": 5}\n', ":1: Expected `str`"),
        ("x.jsonl", b'{"text": " "}\n', ":1: `text` is empty"),
        ("x.jsonl", b'{"text": "a", "id": -4}\n', ":1: `id` -4"),
        ("x.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": 1}\n', ":2: id 1 was used on line 1"),
        ("x.md", b"fine\nfine\nna\xefve\n", ":3: byte 0xef is not UTF-8"),
        ("x.pdf", b"%PDF", ":1: no kind of file we can read"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_and_line(name: str, raw: bytes, says: str, tmp_path: Path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(BadFile) as fault:
        list(chunk_files([tmp_path / name]))
    assert str(fault.value).startswith(f"{tmp_path / name}{says}")


def test_a_missing_file_and_two_files_of_one_name_are_refused(tmp_path: Path):
    with pytest.raises(BadFile, match=r"gone\.md:1: No such file"):
        list(chunk_files([tmp_path / "gone.md"]))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.md").write_text("text")
    with pytest.raises(BadFile, match=r"goes by the source 'x\.md'"):
        list(chunk_files([tmp_path / "a" / "x.md", tmp_path / "b" / "x.md"]))


def test_the_knowledge_that_ships_can_be_read():
    files = knowledge_files()
    assert files == sorted(files)
    for one in chunk_files(files):
        assert len(one.text) <= CHARS_MAX
        assert one.title
