"""Whatever stands in the files, reading them raises nothing, and says nothing that a variable holds."""

from __future__ import annotations

import json
import random
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.settings.folders import SHIPPED, read
from tests.settings.golden import Golden
from understudy.proxy.reports.explain import explain, explain_data
from understudy.proxy.settings.reading import Reading

SECRET = "Pa55w0rd-of-no-one"
ENVIRON = {"SECRET": SECRET, "NUMBER": "7", "EMPTY": "", "ODD": "\udcff\n"}
GOLDEN = [Golden.read(path) for path in sorted((Path(__file__).parent / "golden").glob("*.txt"))]
SOURCES = [path.read_text() for path in sorted(SHIPPED.glob("*.yaml"))]
SOURCES += [text for golden in GOLDEN for text in golden.files.values()]
KEYS = sorted({word for text in SOURCES for word in re.findall(r"\b[a-z_]+(?=:)", text)})
WORDS = ["${SECRET}", "${NUMBER}", "${ODD}", "${X", "$${", "file:.", "file:${SECRET}", "", "plain", "qdrant", "/"]
WORDS += ["/v1", "upstream", "local", "http://x", "127.0.0.1:0", "a\nb", "\ud800", "\0", "no", "~"]

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.dates())
scalars = st.one_of(plain, st.text(max_size=8), st.sampled_from(WORDS))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), scalars), inner, max_size=6),
    ),
    max_leaves=20,
)
PUT_IN = ["", " ", "\n", "- ", ": ", "[", "}", "&a ", "*a", "<<: ", "!x ", "${SECRET}", "\t", "7", "'"]
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def judged(text: str | bytes) -> Reading:
    """A file of this text is read, everything is said that can be, and it must be fit to be said."""
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    with tempfile.TemporaryDirectory() as folder:
        reading = read(Path(folder), content, ENVIRON)
    assert (reading.settings is None) == bool(reading.faults)
    assert reading.faults == tuple(sorted(reading.faults))
    for fault in (*reading.faults, *reading.warnings):
        assert fault.line >= 1
        assert fault.col >= 1
        assert str(fault).isprintable()
        assert SECRET not in str(fault)
    for path in ("/", "/v1/x"):
        assert explain(reading, "GET", path)
        assert json.dumps(explain_data(reading, "GET", path))
    return reading


@quick
@given(st.text(max_size=200))
def test_any_text_is_read(text: str):
    judged(text)


@quick
@given(st.binary(max_size=100))
def test_any_bytes_are_read(content: bytes):
    judged(content)


@quick
@given(st.text(alphabet="{}[]:-,&*!|>'\"%@`#?$~< \n\tab01\\Ux.e=", max_size=80))
def test_any_punctuation_is_read(text: str):
    judged(text)


@quick
@given(values)
def test_any_value_under_any_key_is_read(value: Any):
    try:
        text = yaml.dump(value, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return
    judged(text)


@quick
@given(st.sampled_from(SOURCES), st.randoms(use_true_random=False))
def test_a_policy_file_with_something_knocked_out_or_put_in_is_read(text: str, dice: random.Random):
    for _ in range(dice.randint(1, 4)):
        start = dice.randrange(len(text) + 1)
        put = dice.choice(
            ["", " ", "\n", "- ", ": ", "[", "}", "&a ", "*a", "<<: ", "!x ", "${SECRET}", "\t", "7", "'"]
        )
        text = text[:start] + put + text[start + dice.randint(0, 6) :]
    judged(text)


@quick
@given(st.sampled_from(SOURCES), st.randoms(use_true_random=False))
def test_a_variable_in_any_place_is_never_told(text: str, dice: random.Random):
    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}{dice.choice(['${SECRET}', 'x${SECRET}'])!r}" if dice.random() < 0.3 else match[0]

    judged(re.sub(r"((?:: |- |\[|, ))([^\s,{}\[\]:]+)(?=[\s,\]}])", filled, text))


TOKEN = "geheim-7f3a"
HEADER = """
routes:
  - name: a
    match: {prefix: /}
    dialect: plain
    tiers:
      - kind: upstream
        name: a
        url: http://127.0.0.1:1
        headers:
          authorization: WRITTEN
"""


@pytest.mark.parametrize(
    "written",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f'"{TOKEN}\\n"',
        f"!{TOKEN} x",
        f"!{TOKEN}",
        f"!!{TOKEN}",
        f"!{TOKEN}!x",
        f"*{TOKEN}",
        f"&{TOKEN}",
        f"%{TOKEN}",
        f"@{TOKEN}",
        f"`{TOKEN}`",
        f"'{TOKEN}",
        f'"{TOKEN}',
        f"{TOKEN}: x",
        f"{{{TOKEN}: x}}",
        f"[{TOKEN}]",
        f"|\n            {TOKEN}\n            two",
        f">\n  {TOKEN}",
        f"file:{TOKEN}",
        f"file:/{TOKEN}/\\0",
        f"${{{TOKEN}",
        f"${{NOT_SET}}{TOKEN}",
        f"${{NOT_SET:-{TOKEN}}}",
        f"${{NOT_SET:-{TOKEN}}}\xe4",
        f"{TOKEN}\xe4",
        f"{TOKEN}\x07",
        f"{TOKEN} # comment",
    ],
)
def test_a_header_is_never_told_however_it_is_written(written: str, tmp_path: Path):
    reading = read(tmp_path, HEADER.replace("WRITTEN", written))
    said = [*map(str, reading.faults), *map(str, reading.warnings), repr(reading), str(reading.settings)]
    said += [explain(reading, "GET", "/"), json.dumps(explain_data(reading, "GET", "/"))]
    assert not [each for each in said if TOKEN in each]
