"""What is fit to be compiled: mypyc means the same by it as Python does only where the sources keep to some rules.

A generator that mypyc made has no place of its own for the exception that is being handled. One that waits in the
middle of handling one leaves it to whoever runs meanwhile: errors then have a false context, or the process ends. And
mypyc believes what mypy has worked out: that a field is still None, or a flag still down, because nobody in this very
function has touched it since, though something that was called may have.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
WAITS = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)
WAITING = """
async def waiting(call):
    try:
        return await call()
    except OSError:
        return await call()
"""
TIDYING = """
async def tidying(call):
    try:
        return await call()
    finally:
        await call()
"""
HOLDING = """
async def holding(call, timeout):
    async with timeout(1):
        return await call()
"""
STALE = """
class Door:
    def __init__(self) -> None:
        self.failing = False

    def refuse(self) -> None:
        self.failing = True

    def read(self) -> bool:
        if self.failing:
            return False
        self.refuse()
        return not self.failing and True
"""


def _said(name: str) -> tuple[str, ...]:
    """A table of setup.py's, which can't be imported: it would build."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == name)


def _unfit(text: str) -> Iterator[str]:
    """What must not be compiled, by its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.AsyncWith | ast.AsyncFor):
            yield f"{node.lineno}: async with and async for wait while they handle what was raised in them"
        if isinstance(node, ast.Try):
            handling: list[ast.AST] = [*node.handlers, *node.finalbody]
            yield from (
                f"{each.lineno}: waits while an exception is handled"
                for part in handling
                for each in ast.walk(part)
                if isinstance(each, WAITS)
            )


def _mypy(options: tuple[str, ...], sources: list[str], at: Path) -> str:
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, *options, *sources],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return told.stdout + told.stderr


COMPILED, RULES = _said("ON_EVERY_CALLS_WAY"), _said("MYPY")


@pytest.mark.parametrize("source", COMPILED)
def test_what_is_compiled_waits_for_nothing_while_it_handles_an_exception(source: str):
    assert not list(_unfit((REPOSITORY / source).read_text(encoding="utf-8")))


@pytest.mark.parametrize("text", [WAITING, TIDYING, HOLDING])
def test_what_does_is_noticed(text: str):
    assert list(_unfit(text))


def test_mypy_believes_nothing_of_it_that_a_call_may_have_changed():
    told = _mypy(RULES, [f"understudy/{source}" for source in COMPILED], REPOSITORY / ".names")
    assert "Success" in told, told


def test_what_it_would_believe_wrongly_is_noticed(tmp_path: Path):
    (tmp_path / "stale.py").write_text(STALE, encoding="utf-8")
    assert "stale.py:13" in (told := _mypy(RULES, ["stale.py"], tmp_path)), told


@pytest.mark.parametrize("source", COMPILED)
def test_nothing_that_is_compiled_is_read_back_from_files_or_wires(source: str):
    # the types of its fields are lost, and what a class is defined with besides its bases
    text = (REPOSITORY / source).read_text(encoding="utf-8")
    bases = [base for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) for base in node.bases]
    assert not [base.lineno for base in bases if ast.unparse(base).endswith("Struct")]
