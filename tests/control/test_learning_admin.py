"""Changes, risks and the journal through the admin port and the command line, as an operator asks for them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.control.watched import LLM
from understudy.policies.events import Event
from understudy.proxy import cli
from understudy.proxy.control.admin import Admin, OfSidecar
from understudy.proxy.control.objectives import Overlooked
from understudy.proxy.dialects import KINDS
from understudy.proxy.settings.reading import read_folder
from understudy.proxy.sidecar import Sidecar

pytestmark = pytest.mark.real_clock

POLICIES = """\
server: {listen: "127.0.0.1:0", admin: "127.0.0.1:0"}
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    dialect: openai-chat
    tiers:
      - {kind: upstream, name: model, url: "http://127.0.0.1:1"}
"""


class Running:
    """A sidecar with its admin port, in this process."""

    def __init__(self, sidecar: Sidecar, told: OfSidecar, port: int, session: aiohttp.ClientSession) -> None:
        self.sidecar = sidecar
        self.told = told
        self.port = port
        self._session = session

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self._session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def post(self, body: str | dict[str, str], **headers: str) -> tuple[int, str]:
        kind = {"json": body} if isinstance(body, dict) else {"data": body.encode("latin-1")}
        async with self._session.post(f"http://127.0.0.1:{self.port}/changes", headers=headers, **kind) as answer:
            return answer.status, await answer.text()

    async def command(self, *words: str) -> int:
        """Run a command in a thread, since we are what it asks."""
        arguments = [words[0], "--admin", f"127.0.0.1:{self.port}", *words[1:]]
        return await asyncio.get_running_loop().run_in_executor(None, cli.main, arguments)

    async def eventually(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 (it holds in another thread's time)
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    folder = tmp_path / "policies"
    folder.mkdir(exist_ok=True)
    (folder / "chat.yaml").write_text(POLICIES)
    sidecar = Sidecar(folder, tmp_path / "state", {}, read_folder(folder, {}, KINDS))
    await sidecar.start()
    told = OfSidecar(sidecar)
    admin = Admin(told, "127.0.0.1:0")
    front = Overlooked(admin, told, sidecar.state)
    await front.start()
    try:
        async with aiohttp.ClientSession() as session:
            made = Running(sidecar, told, admin.port, session)
            await made.eventually(lambda: told.learner is not None and told.learner.journal is not None)
            await made.eventually(lambda: bool(told.learner and told.learner.risks))
            yield made
    finally:
        await front.stop()
        await sidecar.stop()


def failure() -> Event:
    return Event(time.time(), "failure", LLM, "dns", "it has no address", {"level": "live"})


async def test_a_deploy_is_noted_and_stands_beside_the_failures_that_follow(tmp_path: Path):
    async with running(tmp_path) as up:
        assert await up.post("app 2.14 is out\n") == (200, "noted: app 2.14 is out\n")
        said = {"text": "gpt-x by default", "component": LLM, "kind": "model"}
        assert (await up.post(said))[0] == 200
        up.sidecar.events.publish(failure())
        status, told = await up.get("/changes")
        assert status == 200
        assert [(one["kind"], one["detail"]) for one in told["changes"]] == [
            ("model", "gpt-x by default"),
            ("deploy", "app 2.14 is out"),
        ]
        assert [one["kind"] for one in told["suspects"][LLM]] == ["model", "deploy"]
        learner = up.told.learner
        assert learner is not None
        assert learner.journal is not None
        await up.eventually(lambda: len(learner.journal.entries()) == 3 if learner.journal else False)
        _, told = await up.get("/journal?family=failure&since_s=60")
        (entry,) = told["entries"]
        assert entry["component"] == LLM
        assert len(entry["numbers"]) >= 40
        assert [line.partition("before: ")[2] for line in entry["changes"]] == [
            "sidecar: app 2.14 is out",
            f"{LLM} gpt-x by default",
        ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "what was changed?"),
        ("\xff\xfe", "the body must be text"),
        ({"text": "x", "kind": "No Word"}, "kind is a word"),
        ({"text": "x", "component": "a b"}, "kind is a word"),
        ({"txt": "x"}, "the body must be text"),
    ],
)
async def test_a_note_that_says_nothing_is_refused(tmp_path: Path, body: str | dict[str, str], words: str):
    async with running(tmp_path) as up:
        status, text = await up.post(body)
        assert (status, words in text) == (400, True)
        assert not (up.told.learner and up.told.learner.changes)


async def test_no_web_page_notes_a_change_and_none_is_longer_than_a_line(tmp_path: Path):
    async with running(tmp_path) as up:
        assert (await up.post("x", Origin="http://evil.example"))[0] == 403
        await up.post("a\x1b[31m\nb" + "c" * 1000)
        _, told = await up.get("/changes")
        (change,) = told["changes"]
        assert change["detail"].startswith("a [31m bccc")
        assert len(change["detail"]) == 300


async def test_who_takes_a_wrong_turn_on_the_admin_port_is_told_the_ways(tmp_path: Path):
    async with running(tmp_path) as up:
        status, index = await up.get("/")
        assert (status, "POST /breakers/ROUTE/TIER/ENDPOINT" in index) == (200, True)
        status, told = await up.get("/healthz")
        assert (status, told.endswith(index)) == (404, True)
        assert await up.get("/tier") == (405, "/tier takes POST, not GET\n")


async def test_the_journal_is_asked_for_by_what_there_is(tmp_path: Path):
    async with running(tmp_path) as up:
        assert (await up.get("/journal?family=gossip"))[0] == 400
        assert (await up.get("/journal?count=many"))[0] == 400
        assert (await up.get("/journal?component=nobody"))[1]["entries"] == []


async def test_risk_is_told_with_what_it_rests_on_and_exported(tmp_path: Path):
    async with running(tmp_path) as up:
        _, told = await up.get("/risk")
        assert [one["component"] for one in told["components"]] == [LLM]
        (one,) = told["components"]
        assert (one["trust"], one["warns"], one["failures"]) == ("learning", False, 0)
        assert 0 < one["risk"] < 0.05
        assert len(one["score"]["bins"]) == 5
        _, metrics = await up.get("/metrics")
        assert f'understudy_risk{{component="{LLM}"}}' in metrics
        assert f'understudy_prediction_trusted{{component="{LLM}"}} 0.0' in metrics
        assert "understudy_journal_bytes" in metrics


async def test_the_commands_note_tell_and_advise(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    async with running(tmp_path) as up:
        assert await up.command("note", "app", "2.14") == 0
        assert capsys.readouterr().out == "noted: app 2.14\n"
        up.sidecar.events.publish(failure())
        learner = up.told.learner
        assert learner is not None
        await up.eventually(lambda: bool(learner.journal and len(learner.journal.entries()) == 2))
        assert await up.command("journal", "--since", "1h") == 0
        lines = capsys.readouterr().out.splitlines()
        assert "change    sidecar  deploy: app 2.14" in lines[0]
        assert f"failure   {LLM}  dns: it has no address" in lines[1]
        assert "before: sidecar: app 2.14" in lines[2]
        assert await up.command("journal", "--family", "failure", "--json") == 0
        assert [entry["kind"] for entry in json.loads(capsys.readouterr().out)] == ["dns"]
        assert await up.command("risk") == 0
        table = capsys.readouterr().out
        assert "learning (0)" in table
        assert "ask DNS again for its address" in table
        assert await up.command("risk", "--json") == 0
        assert json.loads(capsys.readouterr().out)["components"]
        assert await up.command("note", "--kind", "No", "x") == 2


async def test_after_a_crash_the_journal_is_read_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    async with running(tmp_path) as up:
        assert (await up.post("app 2.14 is out"))[0] == 200
    state = ["--state", str(tmp_path / "state"), "--admin", "127.0.0.1:1"]
    assert cli.main(["journal", *state]) == 0
    told = capsys.readouterr()
    assert "deploy: app 2.14 is out" in told.out
    assert "no sidecar answers" in told.err
    assert cli.main(["journal", "--state", str(tmp_path / "none"), "--admin", "127.0.0.1:1"]) == 2
    assert cli.main(["journal", "--since", "yesterday", *state]) == 2
    assert cli.main(["journal", "--family", "gossip", *state]) == 2
    assert cli.main(["risk", "--admin", "127.0.0.1:1"]) == 2
    assert cli.main(["note", "x", "--admin", "127.0.0.1:1"]) == 2


async def test_other_policies_are_a_change_from_the_moment_they_are_in_force(tmp_path: Path):
    async with running(tmp_path) as up:
        (tmp_path / "policies" / "chat.yaml").write_text(POLICIES.replace("127.0.0.1:1", "127.0.0.1:2"))
        began = time.time()
        assert up.sidecar.reload()
        _, told = await up.get("/changes")
        assert [one["kind"] for one in told["changes"]] == ["endpoints", "policies"]
        assert all(began <= one["at"] <= time.time() for one in told["changes"])
        assert told["changes"][0]["detail"].endswith("127.0.0.1:1 -> llm_service:127.0.0.1:2")
