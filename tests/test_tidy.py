"""The rules of style, as tests: a rule that is not here is a wish.

Each rule is a function from a file to its offences; one test runs it over the tree, another over a sample that breaks
it, so that no rule can go blind. What a linter already says (unused names, line length) is left to it.
"""

from __future__ import annotations

import ast
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from understudy.proxy.settings import settings

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("proxy", "policies", "indexes", "models", "envoy")
NOT_OURS = {"build", "dist", "__pycache__"}
"""Folders without files of ours, besides the hidden ones other than `.ci`."""
TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".json", ".conf", ""}

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 600
REAL_SLEEP_S_MAX = 1.0
TEST_NAME_WORDS_MIN = 3

# Put together here, so that this file keeps its own rules.
NOTE = "TO" + "DO"
UNFINISHED = re.compile(rf"\b({NOTE}|FIX{'ME'}|XX{'X'})\b")
ELSEWHERE = re.compile(rf"(?<![\w.~$}}/])/(wo{'rk'}|ro{'ot'}|ho{'me'})/")

SPEAKS = {"cli.py", "__main__.py"}
"""Files whose job is to write to the terminal."""

SLEEPS = {"tests/kit/processes.py"}
"""Waiting for another process to come up has no event to wait for."""

WITH_UNIT = re.compile(r"_(s|bytes|chars|tokens|texts|max|min|share|ratio|percent|per_s|per_token|usd|days)$")
WITHOUT_UNIT = {
    "after_chunks": "a count",
    "attempts": "a count, bounded by its type",
    "cache_write": "money for a million tokens",
    "cached_input": "money for a million tokens",
    "cost": "money, in the currency of the price table",
    "input": "money for a million tokens",
    "output": "money for a million tokens",
    "burst": "a count of calls",
    "concurrent": "a count of calls",
    "consecutive": "a count of failures",
    "dimensions": "a count",
    "llm_burst": "a count of LLM tokens",
    "passages": "a count",
    "permits": "a count of calls",
    "port": "a port is a port",
    "queue": "a count of calls",
    "ratio": "a share of one",
    "sentences": "a count",
    "share": "a share of one",
    "status": "an HTTP status",
    "priority": "a place in an order",
    "tokens": "a count",
    "weight": "relative to its siblings",
    "workers": "a count",
}
NEEDS_UNIT = re.compile(r"(^|_)(timeout|interval|delay|ttl|pause|period|backoff)$")


@dataclass(frozen=True)
class File:
    """One Python file, read once: its place in the tree, its text and its syntax tree."""

    path: PurePosixPath
    text: str
    tree: ast.Module

    @property
    def in_tests(self) -> bool:
        return self.path.parts[0] == "tests"


Rule = Callable[[File], Iterator[str]]


# --- rules ---------------------------------------------------------------------------------------------------------


def begins_with_its_purpose(file: File) -> Iterator[str]:
    """A module's first line is a sentence that names its purpose."""
    first = (ast.get_docstring(file.tree) or "").partition("\n")[0]
    if len(first.split()) < 3:
        yield "1: no sentence at the top says what this module is for"
    elif not first.endswith((".", ":", "!", "?", ".`")):
        yield f"1: the first line is no whole sentence: {first!r}"


def functions_fit_a_screen(file: File) -> Iterator[str]:
    """One function, one screen."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.lineno}: {node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


def files_are_short(file: File) -> Iterator[str]:
    """A file of more than 600 lines is two."""
    lines = file.text.count("\n")
    if lines > FILE_LINES_MAX:
        yield f"{lines}: more than {FILE_LINES_MAX} lines"


def nothing_is_unfinished(file: File) -> Iterator[str]:
    """Nothing is left to be done: no notes to self, no methods that only say so outside of abstract bases."""
    for number, line in enumerate(file.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{number}: unfinished: {line.strip()}"
    abstract = {id(inner) for node in ast.walk(file.tree) if _is_abstract(node) for inner in ast.walk(node)}
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.dump(node) and id(node) not in abstract:
            yield f"{node.lineno}: not implemented, and in no abstract base"


def _is_abstract(node: ast.AST) -> bool:
    """A Protocol, an ABC, or the Stream that every stream is."""
    if not isinstance(node, ast.ClassDef):
        return False
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
    return node.name == "Stream" or bool(bases & {"Protocol", "ABC"})


def nobody_waits_for_real(file: File) -> Iterator[str]:
    """Tests wait on the virtual clock, or not at all."""
    if not file.in_tests or str(file.path) in SLEEPS or file.path.parts[1] == "bench":
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
            yield f"{node.lineno}: time.sleep in a test; wait for what is waited for, or use the virtual clock"
    for function in _on_real_time(file.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.sleep" and _first_number(node) >= 1:
                yield f"{node.lineno}: a second or more of real time; use the virtual clock"


def _on_real_time(tree: ast.Module) -> Iterator[ast.AST]:
    """The functions that run on a real clock: those so marked, or all of a module so marked."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" and "real" in ast.dump(node):
            yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef) and any("real_clock" in ast.dump(one) for one in node.decorator_list):
            yield node


def _first_number(call: ast.Call) -> float:
    value = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else 0
    return value if isinstance(value, int | float) else 0


def only_the_command_line_prints(file: File) -> Iterator[str]:
    """Packages log; only the command line, and the `main` of a module that is a program, write to the terminal."""
    if file.in_tests or file.path.name in SPEAKS:
        return
    programs = (one for one in file.tree.body if isinstance(one, ast.FunctionDef) and one.name == "main")
    may = {id(inner) for program in programs for inner in ast.walk(program)}
    for node in ast.walk(file.tree):
        if (
            id(node) not in may
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            yield f"{node.lineno}: print()"


def imports_are_absolute(file: File) -> Iterator[str]:
    """Absolute imports only."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{node.lineno}: a relative import"


def parameters_name_their_unit(file: File) -> Iterator[str]:
    """`timeout` of what? `wait_s`, `interval_s`."""
    if file.in_tests:
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.arg) and NEEDS_UNIT.search(node.arg):
            yield f"{node.lineno}: the parameter {node.arg} has no unit in its name"


def a_tests_name_is_a_sentence(file: File) -> Iterator[str]:
    """A test's name is a sentence."""
    if not file.in_tests:
        return
    for node in ast.walk(file.tree):
        named = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        if named.startswith("test_") and len(named.split("_")) - 1 < TEST_NAME_WORDS_MIN:
            yield f"{node.lineno}: {named} is no sentence"


RULES: tuple[Rule, ...] = (
    begins_with_its_purpose,
    functions_fit_a_screen,
    files_are_short,
    nothing_is_unfinished,
    nobody_waits_for_real,
    only_the_command_line_prints,
    imports_are_absolute,
    parameters_name_their_unit,
    a_tests_name_is_a_sentence,
)


# --- the tree ------------------------------------------------------------------------------------------------------


def _ours() -> Iterator[Path]:
    """Every file of ours, without what is built or installed."""
    for path in sorted(REPOSITORY.rglob("*")):
        folders = path.relative_to(REPOSITORY).parts[:-1]
        hidden = any(one.startswith(".") and one != ".ci" for one in folders)
        if path.is_file() and not hidden and not any(one in NOT_OURS or ".egg-info" in one for one in folders):
            yield path


def _as_file(path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    return File(PurePosixPath(path.relative_to(REPOSITORY).as_posix()), text, ast.parse(text))


@pytest.fixture(scope="module")
def python_files() -> list[File]:
    top = {"tests", *PACKAGES}
    return [_as_file(path) for path in _ours() if path.suffix == ".py" and path.relative_to(REPOSITORY).parts[0] in top]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule, python_files: list[File]):
    offences = [f"{file.path}:{offence}" for file in python_files for offence in rule(file)]
    assert not offences, "\n".join([rule.__doc__ or "", *offences])


def test_no_file_names_a_place_on_somebodys_machine():
    offences = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}"
        for path in _ours()
        if path.suffix in TEXTS and path.stat().st_size < 1_000_000
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert not offences, "\n".join(offences)


def _is_number(kind: object) -> bool:
    """Whether a settings field of this type holds a number, looking through Annotated, Optional and unset."""
    if typing.get_origin(kind) is typing.Annotated:
        return _is_number(typing.get_args(kind)[0])
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(_is_number(one) for one in typing.get_args(kind))
    return kind in (int, float)


def unitless(kind: type[msgspec.Struct]) -> list[str]:
    """The numeric fields of a settings type whose names say no unit and have no excuse."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        f"{kind.__name__}.{name}"
        for name in kind.__struct_fields__
        if _is_number(hints[name]) and not WITH_UNIT.search(name) and name not in WITHOUT_UNIT
    ]


def test_numbers_in_the_settings_name_their_unit_or_bound():
    kinds = [one for one in vars(settings).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    assert len(kinds) > 10
    offences = [field for kind in kinds for field in unitless(kind)]
    assert not offences, offences


# --- the rules themselves ------------------------------------------------------------------------------------------

REAL_WAIT = "@pytest.mark.real_clock\nasync def test_x():\n    await asyncio.sleep(2)\n"
SAMPLES: tuple[tuple[Rule, str, str], ...] = (
    (begins_with_its_purpose, "proxy/x.py", "import ast\n"),
    (begins_with_its_purpose, "proxy/x.py", '"""Utilities"""\n'),
    (functions_fit_a_screen, "proxy/x.py", "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX),
    (files_are_short, "proxy/x.py", "pass\n" * (FILE_LINES_MAX + 1)),
    (nothing_is_unfinished, "proxy/x.py", f"x = 1  # {NOTE}: two\n"),
    (nothing_is_unfinished, "proxy/x.py", "class Thing:\n    def f(self):\n        raise NotImplementedError\n"),
    (nobody_waits_for_real, "tests/test_x.py", "import time\n\n\ndef test_x():\n    time.sleep(0.1)\n"),
    (
        nobody_waits_for_real,
        "tests/test_x.py",
        "@pytest.mark.real_clock\nasync def test_x():\n    await asyncio.sleep(2)\n",
    ),
    (only_the_command_line_prints, "proxy/x.py", "print('x')\n"),
    (imports_are_absolute, "proxy/x.py", "from . import y\n"),
    (parameters_name_their_unit, "proxy/x.py", "def f(connect_timeout): ...\n"),
    (a_tests_name_is_a_sentence, "tests/test_x.py", "def test_breaker(): ...\n"),
)


@pytest.mark.parametrize(("rule", "path", "text"), SAMPLES, ids=lambda one: getattr(one, "__name__", None))
def test_the_rule_sees_what_breaks_it(rule: Rule, path: str, text: str):
    assert list(rule(File(PurePosixPath(path), text, ast.parse(text))))


def test_every_rule_has_a_sample_that_breaks_it():
    assert {rule for rule, _, _ in SAMPLES} == set(RULES)


def test_abstract_bases_may_leave_their_methods_open():
    text = "class Stream:\n    def relay(self):\n        raise NotImplementedError\n"
    assert not list(nothing_is_unfinished(File(PurePosixPath("policies/x.py"), text, ast.parse(text))))


def test_a_number_without_a_unit_is_seen():
    class Sloppy(msgspec.Struct):
        timeout: typing.Annotated[float, msgspec.Meta(gt=0)] = 1.0
        wait: int | None = None
        wait_s: float = 1.0
        name: str = ""

    assert [field.rpartition(".")[2] for field in unitless(Sloppy)] == ["timeout", "wait"]


def test_the_map_names_every_room():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"[a-z_]+", text[text.index("## Map") : text.index("Imports run one way")]))
    rooms = ("policies", "indexes", "models", "envoy", "proxy", "proxy/http", "proxy/caching", "proxy/tiers")
    modules = {path.stem for room in rooms for path in (REPOSITORY / room).glob("*.py")}
    assert sorted(modules - drawn - {"__init__", "__main__"}) == []
