"""Health and probes of the running process: who checks tells who does not, and probes say what they are asked."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.kit.acts import answer
from tests.kit.fake_upstream import in_thread
from tests.kit.processes import Sidecar, eventually
from tests.real.streams_rig import Gate, held

pytestmark = pytest.mark.real

CALLS = 40
"""Each on a connection of its own: both workers accept some."""
POLICIES = """
server:
  listen: ${{UNDERSTUDY_LISTEN}}
  admin: ${{UNDERSTUDY_ADMIN}}
  access_log: false
  drain_s: 60
  workers: {workers}
  health: {{every_s: 0.2}}
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    hedge: {{enabled: false}}
    cache: {{enabled: false}}
    tiers:
      - {{kind: upstream, name: first, url: "{first}"}}
      - {{kind: upstream, name: second, url: "{second}"}}
"""
PROBES = ("/livez", "/readyz", "/startupz")


def told(sidecar: Sidecar, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(sidecar.admin_url + path, timeout=60) as answered:
            return answered.status, answered.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status(sidecar: Sidecar) -> dict[str, Any]:
    return json.loads(told(sidecar, "/status")[1])


def called(sidecar: Sidecar) -> tuple[int, str]:
    """The status of one call, and which tier has answered it."""
    request = urllib.request.Request(sidecar.url + "/v1/chat/completions", data=b"{}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            return answered.status, answered.headers["x-understudy-tier"]
    except urllib.error.HTTPError as error:
        return error.code, ""


def tiers(sidecar: Sidecar) -> set[tuple[int, str]]:
    return {called(sidecar) for _ in range(CALLS)}


def write(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "p.yaml").write_text(text)
    return folder


def test_what_the_worker_that_checks_has_found_the_other_goes_by(tmp_path: Path):
    with in_thread(answer(body={"who": "first"})) as first, in_thread(answer(body={"who": "second"})) as second:
        folder = write(tmp_path, POLICIES.format(workers=2, first=first.url, second=second.url))
        with Sidecar(folder, tmp_path / "state") as sidecar:
            name = f"llm_service:{first.host_port}"

            def state() -> str:
                components = status(sidecar)["health"]["components"]
                return next(each["state"] for each in components if each["component"] == name)

            eventually(lambda: state() == "healthy")
            assert tiers(sidecar) == {(200, "primary")}
            # callers would be answered as before: it is the check alone that says otherwise
            before = sidecar.logs().count(f"{name} is unhealthy")
            first.on_check = answer(503, body=b"not now")
            eventually(lambda: state() == "unhealthy")
            eventually(lambda: tiers(sidecar) == {(200, "secondary")})
            asked = len(first.heard)
            assert tiers(sidecar) == {(200, "secondary")}
            assert len(first.heard) == asked
            said = sidecar.logs().count(f"{name} is unhealthy") - before
            assert said == 1, "one makes the verdict, and the other has only heard of it"


@pytest.mark.parametrize("workers", [1, 2])
def test_no_outage_of_others_makes_it_unready_and_being_told_to_stop_does_at_once(tmp_path: Path, workers: int):
    gate = Gate()
    with in_thread(answer(body={"who": "first"})) as first, in_thread(answer(body={"who": "second"})) as second:
        folder = write(tmp_path, POLICIES.format(workers=workers, first=first.url, second=second.url))
        with Sidecar(folder, tmp_path / "state") as sidecar:
            first.do(first.refuse())
            eventually(lambda: status(sidecar)["health"]["service_tier"]["tier"] != "primary")
            assert {path: told(sidecar, path)[0] for path in PROBES} == dict.fromkeys(PROBES, 200)
            assert called(sidecar) == (200, "secondary")
            # not one of them is left: still the process is as well as it was, and a restart would mend nothing
            second.do(second.refuse())
            assert called(sidecar)[0] >= 500
            assert {path: told(sidecar, path)[0] for path in PROBES} == dict.fromkeys(PROBES, 200)
            second.do(second.come_back())
            eventually(lambda: called(sidecar) == (200, "secondary"))
            second.then(held(gate, answer(body={"who": "second"})))
            answered: list[tuple[int, str]] = []
            asking = threading.Thread(target=lambda: answered.append(called(sidecar)))
            heard = len(second.heard)
            asking.start()
            eventually(lambda: len(second.heard) > heard)
            sidecar.signal(15)
            eventually(lambda: told(sidecar, "/readyz") == (503, "draining\n"))
            assert told(sidecar, "/livez")[0] == 200
            gate.open()
            asking.join(60)
            assert answered == [(200, "secondary")]


def test_startup_waits_for_the_local_tier_and_life_does_not(state: Path):
    sidecar = Sidecar(None, state)
    sidecar.ready_path = "/livez"
    with sidecar:
        # asked while the model is being loaded, and again when it is there
        at_first = {path: told(sidecar, path) for path in PROBES}
        assert at_first["/livez"][0] == 200
        if at_first["/startupz"][0] != 200:
            assert at_first["/startupz"][1].startswith("starting")
            assert at_first["/readyz"][0] == 503, "who was asked before it"
        eventually(lambda: {path: told(sidecar, path)[0] for path in PROBES} == dict.fromkeys(PROBES, 200))
        assert status(sidecar)["ready"]
