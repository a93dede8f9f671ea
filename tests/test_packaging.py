"""What is on disk is what is installed, and imports run one way: packaging mistakes fail here, not at a user's.

setuptools takes the five folders from a table in pyproject.toml. A folder missing there vanishes from the wheel without
a word, and so does a data file no pattern names; an import contract may have gone blind. All three are tried.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.machinery
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from understudy.proxy.version import VERSION

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("proxy", "policies", "indexes", "models", "envoy")
NEVER_SHIPPED = {"__pycache__", ".DS_Store"}
COMPILED = tuple(importlib.machinery.EXTENSION_SUFFIXES)
"""How what was compiled here ends: a checkout may hold some, and a wheel is to."""
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
TABLE: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
PEP639_SETUPTOOLS = 77
"""The first setuptools that understands a licence written as an expression."""


def _files() -> Iterator[PurePosixPath]:
    """Every file in the five folders that could be meant for a user, relative to the repository."""
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            relative = PurePosixPath(path.relative_to(REPOSITORY).as_posix())
            if NEVER_SHIPPED.intersection(relative.parts) or relative.name.endswith((".pyc", *COMPILED)):
                continue
            if path.is_file():
                yield relative


def _package_of(file: PurePosixPath) -> str | None:
    """The listed package whose folder is the nearest above `file`."""
    by_folder = {folder: name for name, folder in TABLE.items()}
    return next((by_folder[str(above)] for above in file.parents if str(above) in by_folder), None)


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_folder_with_python_in_it_is_listed_and_nothing_else_is():
    on_disk = {str(file.parent) for file in _files() if file.suffix == ".py"}
    assert on_disk == set(TABLE.values())
    assert sorted(TABLE) == sorted(PROJECT["tool"]["setuptools"]["packages"])
    for name, folder in TABLE.items():
        assert name == "understudy." + folder.replace("/", ".")
        assert (REPOSITORY / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


def test_no_other_folder_holds_python():
    top = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")}
    with_python = {name for name in top if any((REPOSITORY / name).rglob("*.py"))}
    assert with_python - {"build", "dist"} == {*FOLDERS, "examples", "tests"}


def test_every_data_file_is_named_by_a_pattern_and_every_pattern_names_a_file():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    unnamed, used = [], set()
    for file in _files():
        if file.suffix == ".py":
            continue
        package = _package_of(file) or ""
        inside = file.relative_to(TABLE[package])
        matching = [one for one in patterns.get(package, ()) if fnmatch.fnmatch(str(inside), one)]
        used.update((package, one) for one in matching)
        if not matching:
            unnamed.append(str(file))
    assert not unnamed, f"these would be missing from the wheel: {unnamed}"
    unused = {(package, one) for package, several in patterns.items() for one in several} - used
    assert not unused, f"these patterns name nothing: {unused}"


def test_every_folder_says_that_it_is_typed():
    for folder in FOLDERS:
        assert (REPOSITORY / folder / "py.typed").is_file(), folder


# --- dependencies --------------------------------------------------------------------------------------------------


def _imported(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _declared() -> set[str]:
    """The distributions pyproject.toml asks for, with those of its extras, in normal form."""
    project = PROJECT["project"]
    extras = [one for several in project.get("optional-dependencies", {}).values() for one in several]
    return {_normal(re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0]) for one in [*project["dependencies"], *extras]}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_the_standard_librarys_ours_or_declared():
    providers = importlib.metadata.packages_distributions()
    declared = _declared()
    undeclared = {
        f"{file}: {name}"
        for file in _files()
        if file.suffix == ".py"
        for name in _imported((REPOSITORY / file).read_text(encoding="utf-8"))
        if name not in sys.stdlib_module_names
        and name != "understudy"
        and not declared & {_normal(one) for one in providers.get(name, [name])}
    }
    assert not undeclared


# --- the wheel -----------------------------------------------------------------------------------------------------


def _copy_of_the_tree(to: Path) -> Path:
    """What a build needs, elsewhere, so that it leaves nothing here."""
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, to / folder, ignore=shutil.ignore_patterns(*NEVER_SHIPPED, "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, to / name)
    return to


def _build_arguments() -> list[str]:
    """Without isolation where this environment's setuptools will do: that needs no network."""
    try:
        major = int(importlib.metadata.version("setuptools").partition(".")[0])
        importlib.metadata.version("wheel")
    except importlib.metadata.PackageNotFoundError:
        return []
    return ["--no-build-isolation"] if major >= PEP639_SETUPTOOLS else []


@pytest.mark.slow
def test_a_built_wheel_holds_every_file_of_the_five_folders(tmp_path: Path):
    tree = _copy_of_the_tree(tmp_path / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *_build_arguments(), "-w", str(tmp_path), "."]
    # what is compiled besides, and how it runs, tests/real tries
    environ = {**os.environ, "UNDERSTUDY_INTERPRETED": "yes"}
    subprocess.run(command, cwd=tree, env=environ, check=True, timeout=300)
    (wheel,) = tmp_path.glob("understudy-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("understudy/")}
    compiled = {name for name in inside if name.endswith(COMPILED)}
    assert inside - compiled == {f"understudy/{file}" for file in _files()}
    assert {name.partition(".")[0] for name in compiled} == {"understudy/indexes/_walk"}
    entry_points = zipfile.ZipFile(wheel).read(f"understudy-{PROJECT['project']['version']}.dist-info/entry_points.txt")
    assert b"understudy = understudy.proxy.cli:main" in entry_points


@pytest.mark.slow
def test_where_no_compiler_is_a_wheel_is_made_all_the_same_and_nothing_of_it_is_compiled(tmp_path: Path):
    tree = _copy_of_the_tree(tmp_path / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *_build_arguments(), "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=tree, env={**os.environ, "CC": "false"}, check=True, timeout=300)
    (wheel,) = tmp_path.glob("understudy-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in inside if name.endswith(COMPILED)]
    assert {f"understudy/{file}" for file in _files()} <= inside


# --- imports run one way -------------------------------------------------------------------------------------------


def _lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml over the packages in `tree`, found through the link a checkout has."""
    link = tree / ".names" / "understudy"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("..")
    # The linter's console script has no module to run it by.
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / ".names")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_import_contracts_are_kept():
    told = _lint_imports(REPOSITORY)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("policies/straying.py", "import understudy.proxy.settings.settings"),
        ("policies/straying.py", "import understudy.models.space"),
        ("policies/straying.py", "import time"),
        ("policies/straying.py", "from random import random"),
        ("indexes/straying.py", "import understudy.models.space"),
        ("models/straying.py", "import understudy.indexes"),
        ("proxy/straying.py", "import understudy.envoy"),
        ("proxy/tiers/straying.py", "import understudy.proxy.control"),
        ("proxy/http/straying.py", "import understudy.proxy.control"),
    ],
)
def test_an_import_against_the_grain_is_caught(file: str, line: str, tmp_path: Path):
    tree = _copy_of_the_tree(tmp_path / "tree")
    (tree / file).write_text(f'"""Where it may not be."""\n\n{line}\n', encoding="utf-8")
    told = _lint_imports(tree)
    assert told.returncode != 0
    assert "straying" in told.stdout.replace("\n", ""), told.stdout + told.stderr


def test_the_version_that_the_code_says_is_the_packages():
    assert importlib.metadata.version("understudy") == VERSION


def test_the_server_starts_without_what_only_the_local_tier_and_the_admin_port_need():
    heavy = ("numpy", "hnswlib", "onnxruntime", "tokenizers", "aiohttp", "aiocache", "rich", "prometheus_client")
    heavy += ("statistics", "importlib.metadata", "difflib", "sqlite3", "understudy.proxy.tiers.local")
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, understudy.proxy.server; print([m for m in {heavy} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "[]"


def test_this_environment_holds_one_onnxruntime_since_a_second_one_takes_the_gpu_away_without_a_word():
    # both write into one folder: what was installed last answers, and the one for CPUs knows no CUDA
    names = {str(found.metadata["Name"]).lower().replace("_", "-") for found in importlib.metadata.distributions()}
    runtimes = sorted(
        name for name in names if re.fullmatch(r"onnxruntime(-(gpu|directml|openvino|rocm|qnn|silicon))?", name)
    )
    assert len(runtimes) == 1, runtimes
    # chromadb's own server brings the plain one: it has an environment of its own, and here is only its client
    assert "chromadb" not in names
