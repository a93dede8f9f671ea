"""The command line as a person uses it: what it prints, and what it exits with."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest

from understudy.proxy import cli
from understudy.proxy.control.admin import INDEX, Admin
from understudy.proxy.reports.metrics import METRICS

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()

BROKEN = """\
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    retry: {attempts: three}
    tiers:
      - {kind: upstream, name: a, url: "http://localhost:1", frist_byte_s: 3}
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "QDRANT_URL", "UNDERSTUDY_LISTEN", "UNDERSTUDY_ADMIN", "UNDERSTUDY_POLICIES"):
        monkeypatch.delenv(name, raising=False)


def test_check_prints_every_fault_with_its_place_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "chat.yaml").write_text(BROKEN)
    assert cli.main(["check", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.search(r"chat\.yaml:5:23: routes\[0\]\.retry\.attempts: expected int, got str", lines[0])
    assert "chat.yaml:7:" in lines[1]
    assert "first_byte_s" in lines[1]


def test_check_is_content_with_what_ships(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check"]) == 0
    assert "ok: 4 routes" in capsys.readouterr().err


def test_explain_tells_the_stack_and_exits_with_1_where_nobody_claims_the_request(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["explain", "POST", "/v1/chat/completions"]) == 0
    text = capsys.readouterr().out
    assert "NOT THERE, OPENAI_API_KEY is not set" in text
    assert re.search(r"total_s +60\.0 +\S*chat\.yaml:\d+", text)
    assert cli.main(["explain", "--json", "POST", "/v1/embeddings"]) == 0
    assert json.loads(capsys.readouterr().out)["route"]
    assert cli.main(["explain", "GET", "/nothing/here"]) == 1


def test_env_prints_what_the_official_sdks_read(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["env", "--listen", "127.0.0.1:9999"]) == 0
    exported = dict(shlex.split(line)[1].split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert exported == {
        "OPENAI_BASE_URL": "http://127.0.0.1:9999/v1",
        "QDRANT_URL": "http://127.0.0.1:9999",
        "OPENAI_API_KEY": "understudy",
    }


def test_exec_becomes_the_command_with_the_exports_set(monkeypatch: pytest.MonkeyPatch):
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execvpe", lambda *given: became.append(given))
    cli.main(["exec", "--", "python", "app.py", "--flag"])
    name, words, environ = became[0]
    assert (name, words) == ("python", ["python", "app.py", "--flag"])
    assert environ["OPENAI_BASE_URL"] == "http://127.0.0.1:8787/v1"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["exec", "--"], "no command given"),
        (["exec", "--", "/no/such/program"], "No such file"),
        (["status", "--admin", "127.0.0.1:1"], "no sidecar answers"),
        (["index", "search", "--state", "/nonexistent", "x"], "knowledge"),
        (["run", "--policies", "/no/such/folder"], "no policy folder here"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line_without_a_traceback(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(words) in (1, 2)
    said = capsys.readouterr().err
    assert told.lower() in said.lower()
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = cli.main(["run", "--listen", f"127.0.0.1:{port}", "--state", str(tmp_path)])
    assert code == 2
    assert f"can't listen on 127.0.0.1:{port}" in capsys.readouterr().err


# --- README tells the truth ----------------------------------------------------------------------------------------


def test_every_metric_is_listed_in_the_readme_and_no_other():
    listed = set(re.findall(r"^\| `(understudy_\w+)` \|", README, re.MULTILINE))
    assert listed == set(METRICS)


def test_every_command_of_the_readme_is_one_and_every_command_is_in_the_readme():
    named = {words.split()[1] for words in re.findall(r"^\| `(understudy [^`]+)`", README, re.MULTILINE)}
    actions = [action for action in cli.parser()._actions if action.dest == "command"]  # pyright: ignore[reportPrivateUsage]
    assert named == set(actions[0].choices or ())


def test_every_page_of_the_admin_port_is_in_its_index_and_in_the_readme_and_no_other():
    served: set[str] = set()
    for route in Admin(cast("Any", None), "127.0.0.1:0").app().router.routes():
        resource = route.resource
        assert resource is not None
        path = re.sub(r"{(\w+)}", lambda found: found[1].upper(), resource.canonical)
        if route.method != "HEAD" and path != "/":
            served.add(f"{route.method} {path}")
    listed = re.findall(r"^\| (`(?:GET|POST) .*?) \|", README, re.MULTILINE)
    assert set(INDEX) == served
    assert {each for cell in listed for each in re.findall(r"`([^`]+)`", cell)} == served


def test_the_readmes_script_is_the_example():
    script = (REPOSITORY / "examples" / "rag.py").read_text()
    body = script.split('"""\n', 2)[-1].strip()
    assert body in README


def test_every_dialect_and_policy_is_in_the_readme():
    from understudy.proxy.dialects import DIALECTS
    from understudy.proxy.stack import TIER_ORDER

    for name in [*DIALECTS, "deadline", *(name for name, _ in TIER_ORDER if name != "tier")]:
        assert f"| `{name}` |" in README, name


def test_explain_says_which_row_judges_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "chat.yaml").write_text(
        "routes:\n  - name: chat\n    match: {prefix: /v1}\n    dialect: openai-chat\n"
        "    outcomes: [{status: 418, outcome: soft, follow: tier, reason: tea}]\n"
        '    tiers: [{kind: upstream, name: a, url: "http://localhost:1"}]\n'
    )
    asked = ["explain", "POST", "/v1/x", "--policies", str(tmp_path), "--outcome"]
    assert cli.main([*asked, "418"]) == 0
    assert re.search(r"a \(openai\): soft, tier, called tea; decided by \S*chat.yaml:5\n", capsys.readouterr().out)
    assert cli.main([*asked, "429", "Insufficient_Quota"]) == 0
    assert re.search(r"failure, tier, called quota; decided by \S*outcomes.yaml:\d+", capsys.readouterr().out)
    assert cli.main([*asked, "200"]) == 2
    assert cli.main(["explain", "GET", "/x", "--policies", str(tmp_path), "--outcome", "500"]) == 1
