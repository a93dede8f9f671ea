"""Calls through a real Envoy: the upstream dies, errs, stalls and returns, and the caller notices none of it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.envoy.running import Envoy, rendered
from tests.kit.acts import answer, pieces, reset, silence
from tests.kit.fake_upstream import FakeUpstream, Heard, Wire
from tests.kit.processes import needs

pytestmark = [pytest.mark.real, pytest.mark.real_clock("asyncio")]

CHAT = """
routes:
  - name: chat
    match: {prefix: /v1}
    dialect: openai-chat
    deadline: {total_s: 40, reserve_s: 1}
    breaker: {consecutive: 3, open_s: 0.5, open_s_max: 1}
    tiers:
      - {kind: upstream, name: openai, url: "URL", connect_s: 10, first_byte_s: 20}
      - {kind: local}
"""
IMPATIENT = CHAT.replace("first_byte_s: 20", "first_byte_s: 2")
BACK_S_MAX = 60.0
"""How long a returned upstream may stay unasked: an ejection, and the sweep that ends it."""


@asynccontextmanager
async def running(
    tmp_path: Path,
    policies: str,
    upstream: FakeUpstream,
    *,
    environ: dict[str, str] | None = None,
    ca_file: str | None = None,
) -> AsyncIterator[tuple[Envoy, FakeUpstream, aiohttp.ClientSession]]:
    """An Envoy before `upstream` and before a stand-in for the sidecar, which is given too, and a client."""
    async with FakeUpstream(answer(body="sidecar", headers=[(b"x-understudy-tier", b"secondary")])) as sidecar:
        policies = policies.replace("URL", upstream.url)
        envoy = Envoy(tmp_path / "p", policies, sidecar=sidecar.host_port, environ=environ, ca_file=ca_file)
        await asyncio.to_thread(envoy.start)
        try:
            async with aiohttp.ClientSession(envoy.url) as client:
                yield envoy, sidecar, client
        finally:
            await asyncio.to_thread(envoy.__exit__)


async def ask(client: aiohttp.ClientSession, path: str = "/v1/chat/completions", **more: object) -> tuple[int, str]:
    async with client.post(path, json={"model": "m"}, **more) as response:  # pyright: ignore[reportArgumentType]
        return response.status, await response.text()


async def test_the_sidecar_answers_all_while_the_upstream_is_dead_and_steps_back_when_it_returns(
    tmp_path: Path,
) -> None:
    async with (
        FakeUpstream(answer(body="upstream")) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        assert {await ask(client) for _ in range(5)} == {(200, "upstream")}
        assert sidecar.heard == []

        await upstream.refuse()
        answers = [await ask(client) for _ in range(30)]
        answers += await asyncio.gather(*(ask(client) for _ in range(60)))
        assert set(answers) == {(200, "sidecar")}

        await upstream.come_back()
        since = time.monotonic()
        while (said := await ask(client)) != (200, "upstream"):
            assert said == (200, "sidecar")
            assert time.monotonic() - since < BACK_S_MAX
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_the_sidecar_answers_what_the_upstream_only_has_an_error_for(status: int, tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer(status)) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        assert {await ask(client) for _ in range(10)} == {(200, "sidecar")}
        assert len(sidecar.heard) == 10
        if status >= 500:
            # three in a row and it is ejected: the others did not wait for it
            assert 3 <= len(upstream.heard) < 10


async def test_no_request_is_lost_when_many_fail_at_once(tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer(503, delay_s=0.2)) as upstream,
        running(tmp_path, CHAT, upstream) as (_, _sidecar, client),
    ):
        # all of them are retried at the same time; Envoy's own bound on that is 3
        assert set(await asyncio.gather(*(ask(client) for _ in range(80)))) == {(200, "sidecar")}


@pytest.mark.parametrize("act", [silence(), reset()], ids=["silence", "reset"])
async def test_the_sidecar_answers_in_time_when_the_upstream_never_does(act: object, tmp_path: Path) -> None:
    async with (
        FakeUpstream(act) as upstream,  # pyright: ignore[reportArgumentType]
        running(tmp_path, IMPATIENT.replace("total_s: 40", "total_s: 5"), upstream) as (_, _sidecar, client),
    ):
        since = time.monotonic()
        assert await ask(client) == (200, "sidecar")
        assert time.monotonic() - since < 30.0


async def test_the_callers_own_mistakes_are_passed_on_and_never_asked_twice(tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer(401, body="your key")) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        assert {await ask(client) for _ in range(5)} == {(401, "your key")}
        assert (len(upstream.heard), len(sidecar.heard)) == (5, 0)


async def test_a_call_that_may_have_acted_is_not_sent_again_but_one_that_cannot_have_is(tmp_path: Path) -> None:
    async with (
        FakeUpstream(reset()) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        status, _ = await ask(client, "/v1/files")
        assert (status, len(upstream.heard), len(sidecar.heard)) == (502, 1, 0)

        await upstream.refuse()
        assert await ask(client, "/v1/files") == (200, "sidecar")


async def test_the_upstream_gets_its_path_host_and_key_and_the_sidecar_gets_what_the_caller_sent(
    tmp_path: Path,
) -> None:
    policies = CHAT.replace("URL", "URL/base").replace("{prefix: /v1}", "{prefix: /openai, strip: true}")
    policies = policies.replace("connect_s: 1", 'headers: {authorization: "Bearer ${KEY_OF_OURS}"}, connect_s: 1')
    async with (
        FakeUpstream(answer(503)) as upstream,
        running(tmp_path, policies, upstream, environ={"KEY_OF_OURS": "sk-ours"}) as (envoy, sidecar, client),
    ):
        mine = {"authorization": "Bearer mine", "host": "app.example", "x-request-id": "mine-1"}
        for path in ("/openai/v1/chat/completions?n=1", "/openai", "/openai/"):
            assert await ask(client, path, headers=mine) == (200, "sidecar")

        assert upstream.paths == [b"/base/v1/chat/completions?n=1", b"/base/", b"/base/"]
        assert sidecar.paths == [b"/openai/v1/chat/completions?n=1", b"/openai", b"/openai/"]
        there, here = upstream.heard[0], sidecar.heard[0]
        assert (there.header(b"authorization"), here.header(b"authorization")) == (b"Bearer sk-ours", b"Bearer mine")
        assert (there.header(b"host"), here.header(b"host")) == (upstream.host_port.encode(), b"app.example")
        assert (there.header(b"x-request-id"), here.header(b"x-request-id")) == (b"mine-1", b"mine-1")
        assert not any(name.startswith(b"x-envoy") for name, _ in [*there.headers, *here.headers])
        assert "sk-ours" not in rendered(tmp_path / "q", policies.replace("URL", "http://x"), environ=envoy.env)


async def test_a_large_body_reaches_the_sidecar_whole_after_the_upstream_has_failed(tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer(503)) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        body = bytes(range(256)) * 4 * 1024 * 8
        async with client.post("/v1/embeddings", data=body) as response:
            assert (response.status, await response.text()) == (200, "sidecar")
        assert upstream.heard[0].body == sidecar.heard[0].body == body


async def test_a_stream_arrives_piece_by_piece_and_outlives_the_wait_for_its_first_byte(tmp_path: Path) -> None:
    heard = asyncio.Event()

    async def in_turns(wire: Wire, _heard: Heard) -> None:
        await wire.head(200, [(b"content-type", b"text/event-stream"), (b"transfer-encoding", b"chunked")])
        for n in range(5):
            heard.clear()
            await wire.chunk(b'data: {"n": %d}\n\n' % n)
            await heard.wait()
            await asyncio.sleep(0.6)
        await wire.write(b"0\r\n\r\n")

    async with (
        FakeUpstream(in_turns) as upstream,
        running(tmp_path, IMPATIENT, upstream) as (_, sidecar, client),
    ):
        async with client.post("/v1/chat/completions", json={"stream": True}) as response:
            assert response.headers["x-understudy-tier"] == "primary"
            assert response.headers["x-understudy-source"] == "openai"
            said: list[bytes] = []
            async for line in response.content:
                if line.startswith(b"data: {"):
                    said.append(line)
                    heard.set()
        assert said == [b'data: {"n": %d}\n' % n for n in range(5)]
        assert sidecar.heard == []


async def test_a_stream_that_has_begun_is_never_begun_again(tmp_path: Path) -> None:
    async with (
        FakeUpstream(pieces([b"data: 1\n\n"], ending="reset")) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        with pytest.raises(aiohttp.ClientError):
            await ask(client)
        assert sidecar.heard == []


async def test_a_sidecar_that_fails_is_not_ejected(tmp_path: Path) -> None:
    async with (
        FakeUpstream(answer(503)) as upstream,
        running(tmp_path, CHAT, upstream) as (_, sidecar, client),
    ):
        sidecar.always(answer(503, body="nobody can"))
        for _ in range(20):
            assert (await ask(client))[0] == 503
        sidecar.always(answer(body="sidecar"))
        assert {await ask(client) for _ in range(5)} == {(200, "sidecar")}


async def test_what_no_route_claims_is_a_404_that_names_the_routes(tmp_path: Path) -> None:
    async with FakeUpstream() as upstream, running(tmp_path, CHAT, upstream) as (_, sidecar, client):
        for path in ("/", "/v1x", "/v2/chat"):
            async with client.get(path) as response:
                assert response.status == 404
                assert "there are: chat" in (await response.json())["error"]["message"]
        assert (upstream.heard, sidecar.heard) == ([], [])


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for *.example.test, its key in the same file."""
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=understudy test", "-addext", "subjectAltName=DNS:*.example.test"]
    curve, files = ["-pkeyopt", "ec_paramgen_curve:prime256v1"], ["-out", str(file), "-keyout", str(key)]
    subprocess.run(
        [needs("openssl"), "req", "-x509", "-newkey", "ec", *curve, "-nodes", "-days", "2", *subject, *files],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + key.read_text())
    return file


@pytest.mark.parametrize(
    ("trust", "answered_by"),
    [
        ("{ca_file: CA, server_name: api.example.test}", "upstream"),
        ("{ca_file: CA, server_name: api.elsewhere.test}", "sidecar"),
        ("{server_name: api.example.test}", "sidecar"),
        ("{verify: false}", "upstream"),
    ],
    ids=["trusted", "another name", "another authority", "unverified"],
)
async def test_an_https_upstream_is_asked_only_when_it_is_who_it_should_be(
    trust: str, answered_by: str, certificate: Path, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    policies = CHAT.replace("connect_s: 1", f"tls: {trust.replace('CA', str(certificate))}, connect_s: 1")
    async with (
        FakeUpstream(answer(body="upstream"), tls=context) as upstream,
        running(tmp_path, policies, upstream) as (_, _sidecar, client),
    ):
        assert await ask(client) == (200, answered_by)


async def test_envoy_starts_and_the_sidecar_answers_when_the_upstreams_name_cannot_be_found(tmp_path: Path) -> None:
    policies = CHAT.replace("URL", "http://no-such-host.invalid")
    async with FakeUpstream() as upstream, running(tmp_path, policies, upstream) as (_, _sidecar, client):
        assert {await ask(client) for _ in range(5)} == {(200, "sidecar")}
