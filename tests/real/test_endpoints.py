"""Three real upstream processes behind one tier of the running sidecar: one is killed, one is slow, no call is lost."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.kit.processes import Process, Sidecar, free_port

pytestmark = pytest.mark.real

CALLERS = 8
CALLS_EACH = 150
SLOW_S = 1.0

SERVICE = """
import asyncio, sys
from aiohttp import web

name, port, wait_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

async def answer(request):
    await asyncio.sleep(wait_s if request.method == "POST" else 0)
    return web.json_response({"who": name, "choices": []})

app = web.Application()
app.router.add_route("*", "/{path:.*}", answer)
web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)
"""

POLICIES = """
server: {{listen: "${{UNDERSTUDY_LISTEN}}", admin: "${{UNDERSTUDY_ADMIN}}"}}
routes:
  - name: chat
    match: {{prefix: /v1}}
    dialect: openai-chat
    tiers:
      - kind: upstream
        name: models
        endpoints:
{endpoints}
"""


@pytest.fixture
def services() -> Iterator[dict[str, Process]]:
    """By name; the second is slow."""
    with ExitStack() as stack:
        made: dict[str, Process] = {}
        for name, wait_s in (("one", 0.002), ("slow", SLOW_S), ("doomed", 0.002)):
            port = free_port()
            command = [sys.executable, "-c", SERVICE, name, str(port), str(wait_s)]
            made[name] = stack.enter_context(Process(command, ready_port=port, ready_path="/"))
        yield made


async def call(session: aiohttp.ClientSession, url: str) -> tuple[int, str, str]:
    async with session.post(url + "/v1/chat/completions", json={"model": "m", "messages": []}) as answer:
        who = (await answer.json()).get("who", "")
        return answer.status, who, answer.headers["x-understudy-source"]


def metric(sidecar: Sidecar, name: str, endpoint: str) -> float:
    with urllib.request.urlopen(sidecar.admin_url + "/metrics", timeout=30) as told:
        lines = told.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and f'endpoint="{endpoint}"' in line)


@pytest.mark.real_clock
async def test_of_three_endpoints_one_is_killed_and_one_is_slow_and_no_call_is_lost(
    services: dict[str, Process], folder: Path, tmp_path: Path
):
    endpoints = "\n".join(
        f'          - {{name: {name}, url: "http://127.0.0.1:{service.ready_port}"}}'
        for name, service in services.items()
    )
    (folder / "chat.yaml").write_text(POLICIES.format(endpoints=endpoints))
    seen: Counter[tuple[int, str]] = Counter()
    with Sidecar(folder, tmp_path) as sidecar:
        async with aiohttp.ClientSession() as session:

            async def caller(number: int) -> None:
                for done in range(CALLS_EACH):
                    if number == 0 and done == CALLS_EACH // 3:
                        services["doomed"].kill()
                    status, who, source = await call(session, sidecar.url)
                    assert source == f"models/{who}"
                    seen[status, who] += 1

            await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        assert {status for status, _ in seen} == {200}
        assert sum(seen.values()) == CALLERS * CALLS_EACH
        assert seen[200, "doomed"] > 0
        # the slow one is asked now and then, and the others carry the load
        assert 0 < seen[200, "slow"] < CALLERS * CALLS_EACH / 10
        assert metric(sidecar, "understudy_balance_calls_total", "doomed") > seen[200, "doomed"]
        assert metric(sidecar, "understudy_balance_ejected", "doomed") + metric(
            sidecar, "understudy_balance_ejections_total", "doomed"
        )
        client = http.client.HTTPConnection("127.0.0.1", sidecar.admin_port, timeout=30)
        client.request("GET", "/status")
        (tier,) = json.load(client.getresponse())["routes"][0]["tiers"]
        assert [endpoint["name"] for endpoint in tier["endpoints"]] == list(services)
