"""README's own commands, run as they stand against a sidecar that has nothing but itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.processes import COMES_S_MAX, Sidecar, needs

pytestmark = pytest.mark.real
REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    every = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for named, text in every if named == language]


@pytest.fixture(scope="module")
def alone(made_state: Path):
    """A sidecar as `make run` leaves it, with no service behind it."""
    with Sidecar(None, made_state) as sidecar:
        yield sidecar


def run(words: list[str], sidecar: Sidecar, **env: str) -> str:
    bin_folder = str(Path(sys.executable).parent)
    environ = {**os.environ, **env, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    environ |= {"UNDERSTUDY_LISTEN": f"127.0.0.1:{sidecar.port}", "UNDERSTUDY_ADMIN": f"127.0.0.1:{sidecar.admin_port}"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=COMES_S_MAX, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_gives_the_headers_that_are_shown(alone: Sidecar):
    needs("curl")
    (command,) = [block for block in blocks("sh") if block.startswith("curl")]
    shown = next(block for block in blocks("") if block.startswith("HTTP/1.1"))
    told = run(["bash", "-c", command.replace("127.0.0.1:8787", f"127.0.0.1:{alone.port}")], alone)
    lines = [line.strip() for line in told.splitlines()]
    for line in shown.strip().splitlines():
        assert line in lines
    assert "fallback answer" in told


def test_the_script_answers_from_the_handbook_when_it_is_run_with_exec(alone: Sidecar, tmp_path: Path):
    script = tmp_path / "app.py"
    script.write_text(blocks("python")[0])
    told = run(["understudy", "exec", "--", sys.executable, str(script)], alone)
    assert "the breaker opens again" in told


def test_what_env_prints_points_a_shell_at_the_sidecar(alone: Sidecar):
    command = (
        'eval "$(understudy env)" && curl -sf "$QDRANT_URL/collections" && curl -sf "$OPENAI_BASE_URL/embeddings" '
    )
    command += '-H \'content-type: application/json\' -d \'{"model": "m", "input": "x"}\''
    needs("curl")
    told = run(["bash", "-c", command], alone)
    assert '"knowledge"' in told
    assert '"embedding"' in told


def test_the_policy_example_is_sound(alone: Sidecar, tmp_path: Path):
    (tmp_path / "chat.yaml").write_text(blocks("yaml")[0])
    run(["understudy", "check", str(tmp_path)], alone, OPENAI_API_KEY="sk-test")


def test_status_of_the_running_sidecar_is_for_people(alone: Sidecar):
    told = run(["understudy", "status"], alone)
    assert told.startswith("ready\n")
    assert "not there: OPENAI_API_KEY is not set" in told
