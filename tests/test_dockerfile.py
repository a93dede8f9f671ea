"""The Dockerfile is held to its rules without Docker, and its pip commands are tried in a clean environment.

text --> instructions, by stage --> rules (each shown a file that breaks it)
                                \\-> RUN pip install … --> the same command with --dry-run
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
RUN_STAGES = ("cpu", "gpu")


@dataclass
class Stage:
    """One stage: what it is built from, and its instructions in order as (word, rest)."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def all(self, word: str) -> list[str]:
        """What follows each such instruction."""
        return [rest for one, rest in self.steps if one == word]


def stages_of(text: str) -> list[Stage]:
    """The stages of a Dockerfile, with the ARGs before the first one filled in."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "ARG" and not stages:
            arguments.update([rest.split("=", 1)])
        elif word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(name, re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base)))
        else:
            stages[-1].steps.append((word, rest.strip()))
    return stages


# --- rules ---------------------------------------------------------------------------------------------------------


def bases_are_pinned(text: str) -> list[str]:
    """Every base is a named stage, or an image with a tag that names a version."""
    named: set[str] = set()
    wrong: list[str] = []
    for stage in stages_of(text):
        tag = stage.base.rpartition(":")[2] if ":" in stage.base else ""
        if stage.base not in named and not re.match(r"\d+\.\d+", tag):
            wrong.append(f"{stage.base} is no version")
        named.add(stage.name)
    return wrong


def stages_are_named(text: str) -> list[str]:
    """Every stage has a name of its own."""
    names = [stage.name for stage in stages_of(text)]
    return [] if all(names) and len(set(names)) == len(names) else [f"stages: {names}"]


def nothing_is_added_from_afar(text: str) -> list[str]:
    """COPY, not ADD, which unpacks and downloads; and no curl into a shell."""
    added = [rest for stage in stages_of(text) for rest in stage.all("ADD")]
    piped = [rest for stage in stages_of(text) for rest in stage.all("RUN") if re.search(r"(curl|wget).*\|", rest)]
    return added + piped


def images_that_run_are_nobodys(text: str) -> list[str]:
    """Who has an ENTRYPOINT has a numeric USER before it, which is not root."""
    wrong: list[str] = []
    for stage in stages_of(text):
        words = [word for word, _ in stage.steps]
        if "ENTRYPOINT" not in words:
            continue
        users = stage.all("USER")
        if not users or words.index("USER") > words.index("ENTRYPOINT"):
            wrong.append(f"{stage.name}: no USER before the ENTRYPOINT")
        elif not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
            wrong.append(f"{stage.name}: USER {users[-1]}")
    return wrong


def images_that_run_can_be_watched_and_stopped(text: str) -> list[str]:
    """A HEALTHCHECK, STOPSIGNAL SIGTERM, EXPOSE, and an ENTRYPOINT without a shell that would keep the signal."""
    wrong: list[str] = []
    for stage in stages_of(text):
        if not stage.all("ENTRYPOINT"):
            continue
        wrong += [f"{stage.name}: no {word}" for word in ("HEALTHCHECK", "EXPOSE") if not stage.all(word)]
        if stage.all("STOPSIGNAL") != ["SIGTERM"]:
            wrong.append(f"{stage.name}: STOPSIGNAL {stage.all('STOPSIGNAL')}")
        if not stage.all("ENTRYPOINT")[-1].startswith("["):
            wrong.append(f"{stage.name}: its ENTRYPOINT has a shell")
    return wrong


def packages_leave_nothing_behind(text: str) -> list[str]:
    """apt-get: updated and installed in one step, only what is named, and its lists removed."""
    wrong: list[str] = []
    for stage in stages_of(text):
        for rest in stage.all("RUN"):
            wanted = ("apt-get update", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*")
            if "apt-get install" in rest and not all(one in rest for one in wanted):
                wrong.append(f"{stage.name}: {rest}")
    return wrong


def no_compiler_is_shipped(text: str) -> list[str]:
    """What runs has neither a compiler nor pip at work in it."""
    return [
        f"{stage.name}: {rest}"
        for stage in stages_of(text)
        if stage.all("ENTRYPOINT")
        for rest in stage.all("RUN")
        if re.search(r"g\+\+|gcc|build-essential|pip install|-dev\b", rest)
    ]


def code_runs_on_other_processors(text: str) -> list[str]:
    """Where pip compiles, HNSWLIB_NO_NATIVE is set: -march=native would bind the image to the builder's CPU."""
    wrong: list[str] = []
    for stage in stages_of(text):
        compiled = False
        for word, rest in stage.steps:
            compiled = compiled or (word == "ENV" and "HNSWLIB_NO_NATIVE=1" in rest)
            if word == "RUN" and "pip install ." in rest and not compiled:
                wrong.append(stage.name)
    return wrong


def versions_of_single_packages_are_pinned(text: str) -> list[str]:
    """`pip install name` names its version; the project's own dependencies have their bounds in pyproject.toml."""
    return [
        word
        for stage in stages_of(text)
        for command in _commands(stage)
        if command[:2] == ["pip", "install"]
        for word in command[2:]
        if not word.startswith("-") and word != "." and "==" not in word
    ]


def loopback_is_left_only_by_the_user(text: str) -> list[str]:
    """No image listens on every interface unless whoever starts it says so."""
    return [rest for stage in stages_of(text) for word, rest in stage.steps if word == "ENV" and "0.0.0.0" in rest]


RULES: tuple[tuple[Callable[[str], list[str]], str], ...] = (
    (bases_are_pinned, "FROM python:latest AS a\n"),
    (bases_are_pinned, "FROM python AS a\n"),
    (stages_are_named, "FROM python:3.11\n"),
    (nothing_is_added_from_afar, "FROM a:1.0 AS a\nADD x y\n"),
    (nothing_is_added_from_afar, "FROM a:1.0 AS a\nRUN curl x | sh\n"),
    (images_that_run_are_nobodys, 'FROM a:1.0 AS a\nENTRYPOINT ["x"]\nUSER 1:1\n'),
    (images_that_run_are_nobodys, 'FROM a:1.0 AS a\nUSER 0:0\nENTRYPOINT ["x"]\n'),
    (images_that_run_can_be_watched_and_stopped, 'FROM a:1.0 AS a\nENTRYPOINT ["x"]\n'),
    (packages_leave_nothing_behind, "FROM a:1.0 AS a\nRUN apt-get install -y g++\n"),
    (no_compiler_is_shipped, 'FROM a:1.0 AS a\nRUN apt-get install \\\n    g++\nENTRYPOINT ["x"]\n'),
    (code_runs_on_other_processors, "FROM a:1.0 AS a\nRUN pip install .\nENV HNSWLIB_NO_NATIVE=1\n"),
    (versions_of_single_packages_are_pinned, "FROM a:1.0 AS a\nRUN pip install --no-deps numpy\n"),
    (loopback_is_left_only_by_the_user, "FROM a:1.0 AS a\nENV UNDERSTUDY_LISTEN=0.0.0.0:8787\n"),
)


@pytest.mark.parametrize(("rule", "bad"), RULES, ids=lambda one: getattr(one, "__name__", None))
def test_the_dockerfile_keeps_the_rule_and_the_rule_sees_what_breaks_it(rule: Callable[[str], list[str]], bad: str):
    assert rule(DOCKERFILE) == []
    assert rule(bad)


# --- the whole -----------------------------------------------------------------------------------------------------


def test_a_plain_build_gives_the_image_for_cpus_and_a_target_the_one_for_gpus():
    stages = {stage.name: stage for stage in stages_of(DOCKERFILE)}
    assert list(stages)[-1] == "cpu"
    for name in RUN_STAGES:
        assert stages[name].all("CMD") == ['["run"]']
        assert f"--from=build-{name} /opt/understudy" in " ".join(stages[name].all("COPY"))
    assert "cudnn-runtime" in stages["gpu"].base


def test_both_images_are_started_stopped_and_watched_alike():
    cpu, gpu = (next(stage for stage in stages_of(DOCKERFILE) if stage.name == name) for name in RUN_STAGES)
    for word in ("ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "USER", "ENTRYPOINT", "CMD", "VOLUME", "WORKDIR"):
        assert cpu.all(word) == gpu.all(word), word


def test_what_is_copied_is_there_and_is_sent_to_the_builder():
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        source
        for stage in stages_of(DOCKERFILE)
        for rest in stage.all("COPY")
        if "--from=" not in rest
        for source in rest.split()[:-1]
    }
    assert "*" in ignored
    assert copied == sent
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []


def test_the_image_bakes_in_the_model_that_make_installs():
    pinned = re.findall(r"^MODEL := (\S+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    baked = [stage.name for stage in stages_of(DOCKERFILE) if any(pinned[0] in rest for rest in stage.all("RUN"))]
    assert baked == ["build-cpu", "build-gpu"]


def test_what_a_stage_takes_from_another_was_built_before():
    seen: set[str] = set()
    for stage in stages_of(DOCKERFILE):
        taken = {found for rest in stage.all("COPY") for found in re.findall(r"--from=(\S+)", rest)}
        assert taken <= seen
        seen.add(stage.name)


def test_the_health_check_asks_the_admin_port_and_says_no_when_nobody_is_there(tmp_path: Path):
    from tests.kit.acts import answer
    from tests.kit.fake_upstream import in_thread

    (check,) = next(stage for stage in stages_of(DOCKERFILE) if stage.name == "cpu").all("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python3"

    def asked(admin: str) -> int:
        # -I -S: with nothing but the standard library, as promised.
        run = [sys.executable, "-I", "-S", *command[1:]]
        return subprocess.run(run, env={"UNDERSTUDY_ADMIN": admin}, capture_output=True, timeout=120).returncode

    with in_thread(answer(200)) as sidecar:
        assert asked(sidecar.host_port) == 0
        assert asked(f"0.0.0.0:{sidecar.port}") == 0
        assert sidecar.paths == [b"/readyz"] * 2
        sidecar.always(answer(503))
        assert asked(sidecar.host_port) == 1
    assert asked(sidecar.host_port) == 1


# --- its pip commands ----------------------------------------------------------------------------------------------


def _commands(stage: Stage) -> list[list[str]]:
    """The commands of a stage's RUN steps, as words."""
    return [shlex.split(one) for rest in stage.all("RUN") for one in rest.split("&&")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build-cpu", "build-gpu"])
def test_what_the_image_installs_can_be_found_by_pip(name: str, tmp_path: Path):
    stage = next(one for one in stages_of(DOCKERFILE) if one.name == name)
    tree, environment = tmp_path / "build", tmp_path / "environment"
    tree.mkdir()
    for rest in stage.all("COPY"):
        *sources, _ = rest.split()
        for source in sources:
            found = REPOSITORY / source
            shutil.copytree(found, tree / source) if found.is_dir() else shutil.copy(found, tree / source)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    told = ""
    for command in _commands(stage):
        if command[0] == "sed":
            subprocess.run(command, cwd=tree, check=True)
        elif command[:2] == ["pip", "install"]:
            words = [str(environment / "bin" / "python"), "-m", "pip", "install", "--dry-run", *command[2:]]
            ran = subprocess.run(words, cwd=tree, capture_output=True, text=True, timeout=600)
            assert ran.returncode == 0, ran.stderr
            told += ran.stdout
    would_install = " ".join(re.findall(r"Would install (.*)", told))
    assert re.search(r"\bunderstudy-\d", would_install)
    assert re.search(r"\bgt[-_]all[-_]minilm", would_install)
    # One of the two, never both: they share their files.
    assert bool(re.search(r"onnxruntime-gpu-\d", would_install)) is (name == "build-gpu")
    assert bool(re.search(r"onnxruntime-\d", would_install)) is (name == "build-cpu")
