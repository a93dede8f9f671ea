"""`understudy envoy bootstrap` as people and scripts meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envoy.test_bootstrap import KEYED, PLAIN_CHAT
from understudy.envoy.cli import main


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "chat.yaml").write_text(PLAIN_CHAT)
    return folder


def test_it_prints_a_bootstrap(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "--policies", str(policies), "--sidecar", "understudy:9000"]) == 0

    out, err = capsys.readouterr()
    assert 'address: "understudy"' in out
    assert err == ""


def test_it_writes_a_file_that_everybody_may_read_and_leaves_nothing_beside_it(policies: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "envoy.yaml"
    output.parent.mkdir()
    output.write_text("the old one")

    assert main(["bootstrap", "--policies", str(policies), "--output", str(output)]) == 0

    assert output.read_text().startswith("# An Envoy bootstrap")
    assert output.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in output.parent.iterdir()] == ["envoy.yaml"]


def test_secrets_come_from_the_environment_of_envoy(
    policies: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (policies / "chat.yaml").write_text(KEYED)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    assert main(["bootstrap", "--policies", str(policies)]) == 0

    out = capsys.readouterr().out
    assert "Bearer %ENVIRONMENT(OPENAI_API_KEY)%" in out
    assert "sk-very-secret" not in out


def test_faults_in_the_policies_are_told_with_their_lines(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policies / "chat.yaml").write_text(PLAIN_CHAT.replace("total_s: 20", "total_s: soon"))

    assert main(["bootstrap", "--policies", str(policies)]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert "chat.yaml:6:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--listen", "nowhere"], 2, "'nowhere' is no address"),
        (["--sidecar", "127.0.0.1:0"], 2, "'127.0.0.1:0' is no address"),
        (["--output", "no/such/folder/envoy.yaml"], 1, "can't be written: No such file or directory"),
        (["--frobnicate"], 2, "unrecognized arguments"),
    ],
)
def test_what_will_not_do_is_said_in_one_line(
    arguments: list[str], code: int, said: str, policies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bootstrap", "--policies", str(policies), *arguments]) == code

    assert said in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", "--help"]) == 0

    assert "envoy --mode validate" in capsys.readouterr().out
