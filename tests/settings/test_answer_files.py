"""Files of prepared answers: what is in them is believed whole, and what is wrong is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.settings.folders import read
from understudy.proxy.caching.answer_files import ENTRIES_MAX, answer_files, fingerprint_of, read_answers

ROUTE = """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    tiers: [{kind: local}]
    last_words: {answers: [answers.yaml]}
"""
GOOD = """
- question: How do I reset my password?
  also: ["I forgot my password, what do I do?"]
  answer: |
    Follow the link
    below the form.
  source: Handbook
- {question: "When was 1.0 released?", answer: 2024-05-01}
"""


def faults_of(folder: Path, text: str, name: str = "answers.yaml") -> list[str]:
    path = folder / name
    path.write_text(text)
    _, faults = read_answers([str(path)])
    return [str(fault).removeprefix(f"{folder}/") for fault in faults]


def test_yaml_and_jsonl_say_the_same(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(GOOD)
    lines = [
        {
            "question": "How do I reset my password?",
            "also": ["I forgot my password, what do I do?"],
            "answer": "Follow the link\nbelow the form.",
            "source": "Handbook",
        },
        {"question": "When was 1.0 released?", "answer": "2024-05-01"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    one, faults = read_answers([str(tmp_path / "a.yaml")])
    other, others = read_answers([str(tmp_path / "a.jsonl")])
    assert (faults, others) == ([], [])
    assert [entry._replace(place="") for entry in one] == [entry._replace(place="") for entry in other]
    assert one[0].place == f"{tmp_path}/a.yaml:2"
    assert other[1].place == f"{tmp_path}/a.jsonl:2"
    assert one[1].answer == "2024-05-01"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: b", "answers.yaml:1:1: expected a list of questions and answers, got mapping"),
        ("- 7", "answers.yaml:1:3: [0]: expected a mapping with question and answer, got int"),
        ("- {question: Why}", "answers.yaml:1:3: [0].answer: missing"),
        ("- answer: so", "answers.yaml:1:3: [0].question: missing"),
        ("- {question: Why, answer: ''}", "answers.yaml:1:19: [0].answer: expected a text"),
        ("- {question: [], answer: so}", "answers.yaml:1:4: [0].question: expected a text"),
        ("- {question: '?!', answer: so}", "answers.yaml:1:3: [0]: “?!” has no word in it that could be asked"),
        ("- question: Why?\n  answer: so\n  colour: red", "answers.yaml:3:3: [0].colour: unknown key"),
        ("- question: Why?\n  answer: so\n  answer: no", "answers.yaml:3:3: [0].answer: duplicate key"),
        ("- question: Why?\n  answer: so\n  also: Whence?", "answers.yaml:3:3: [0].also: expected a list of questions"),
        (
            "- {question: Why, answer: a}\n- {question: why, answer: b}",
            "answers.yaml:2:3: [1]: “why” is answered already",
        ),
        ("- {question: Why, answer: [", "answers.yaml:1:28: "),
        ("- {question: Why, answer: " + "x" * 20_001 + "}", "[0].answer: longer than 20000 characters"),
    ],
)
def test_a_fault_is_told_with_its_file_line_and_column(tmp_path: Path, text: str, told: str):
    faults = faults_of(tmp_path, text)
    assert any(told in fault for fault in faults), faults


def test_lines_of_json_have_faults_of_their_own(tmp_path: Path):
    text = '{"question": "Why?", "answer": "so"}\n{"question"\n[]\n{"question": "When?", "answer": null}\n'
    assert faults_of(tmp_path, text, "answers.jsonl") == [
        "answers.jsonl:2:12: not a line of JSON",
        "answers.jsonl:3:1: expected an object with question and answer",
        "answers.jsonl:4:1: answer: expected a text",
    ]


def test_bytes_that_are_no_text_and_too_many_answers_are_faults(tmp_path: Path):
    (tmp_path / "answers.yaml").write_bytes(b"- question: \xff\n")
    _, faults = read_answers([str(tmp_path / "answers.yaml")])
    assert [fault.why for fault in faults] == ["not UTF-8"]
    rows = [json.dumps({"question": f"Why {n}?", "answer": "so"}) for n in range(ENTRIES_MAX + 1)]
    (fault,) = faults_of(tmp_path, "\n".join(rows), "many.jsonl")
    assert f"more than {ENTRIES_MAX} answers" in fault


def test_an_empty_file_has_no_answers_and_no_faults(tmp_path: Path):
    assert faults_of(tmp_path, "") == []
    assert faults_of(tmp_path, "", "empty.jsonl") == []


def test_reading_a_folder_tells_the_faults_of_the_files_it_names_and_which_to_watch(tmp_path: Path):
    missing = read(tmp_path / "policies", ROUTE)
    assert [(fault.key, fault.why) for fault in missing.faults] == [("routes[0].last_words.answers[0]", "no such file")]
    path = tmp_path / "policies" / "answers.jsonl"
    route = ROUTE.replace("answers.yaml", "answers.jsonl")
    path.write_text('{"question": "Why?"}')
    bad = read(tmp_path / "policies", route)
    assert [(fault.file, fault.key) for fault in bad.faults] == [(str(path), "answer")]
    assert bad.answers == (str(path),)
    path.write_text('{"question": "Why?", "answer": "So."}')
    good = read(tmp_path / "policies", route)
    assert good.settings is not None
    assert answer_files(good.settings) == good.answers == (str(path),)


def test_what_is_watched_changes_when_a_file_does_or_comes_or_goes(tmp_path: Path):
    path = tmp_path / "answers.yaml"
    prints = [fingerprint_of([str(path)])]
    for content in (GOOD, GOOD + "\n", ""):
        path.write_text(content)
        prints.append(fingerprint_of([str(path)]))
    assert len(set(prints)) == 4
    assert answer_files(None) == ()
