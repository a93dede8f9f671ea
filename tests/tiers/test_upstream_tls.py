"""Upstreams behind TLS: trusted, not trusted, under another name, and broken in the handshake."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.kit.acts import answer, broken, hang_up, sse
from tests.kit.certificates import Authority
from tests.kit.fake_upstream import FakeUpstream
from tests.tiers.upstream_bench import Bench, taken
from understudy.proxy.settings.settings import Tls

OK = answer(200, body={"choices": []})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and for each a certificate for 127.0.0.1 and upstream.test that it signed."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("good", "wrong"):
        Authority(folder, name).vouches(f"{name}-up", subject="/CN=up", names="IP:127.0.0.1,DNS:upstream.test")
    return folder


@pytest.fixture
def served(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "good-up.pem", certificates / "good-up.key")
    return context


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.real_clock(within_s=60.0))], autouse=True)
def either_loop(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_an_upstream_whose_authority_is_trusted_answers_again_and_again(
    served: ssl.SSLContext, certificates: Path
):
    async with Bench(OK, tls=served, trust=Tls(ca_file=str(certificates / "good.pem"))) as bench:
        for _ in range(3):
            assert (await bench.ask()).body == b'{"choices": []}'
        assert bench.up.connections_ever == 1


async def test_a_stream_comes_through_tls(served: ssl.SSLContext, certificates: Path):
    act = sse([{"choices": [{"delta": {"content": "x" * 100_000}}]}])
    async with Bench(act, tls=served, trust=Tls(ca_file=str(certificates / "good.pem"))) as bench:
        sink = await taken(await bench.ask())
        assert sink.broken == ""
        assert len(sink.body) > 100_000


async def test_an_upstream_whose_authority_is_not_trusted_fails_and_is_told_nothing(
    served: ssl.SSLContext, certificates: Path
):
    for trust in (Tls(ca_file=str(certificates / "wrong.pem")), Tls()):
        async with Bench(OK, tls=served, trust=trust) as bench:
            failed = await bench.fails()
            # what is not trusted now will not be in a moment; another endpoint may have another certificate
            assert (failed.reason, failed.again, failed.away, failed.elsewhere) == ("tls", False, True, True)
            assert bench.up.heard == []
            await bench.settled()
            assert (bench.pool.size, bench.up.connections_open) == (0, 0)


async def test_the_certificates_name_counts_and_another_may_be_expected(served: ssl.SSLContext, certificates: Path):
    authority = str(certificates / "good.pem")
    async with Bench(OK, tls=served, trust=Tls(ca_file=authority, server_name="upstream.test")) as bench:
        assert (await bench.ask()).status == 200
    async with Bench(OK, tls=served, trust=Tls(ca_file=authority, server_name="elsewhere.test")) as bench:
        assert (await bench.fails()).reason == "tls"
        assert bench.up.heard == []


async def test_whoever_asks_for_it_trusts_everybody(served: ssl.SSLContext):
    async with Bench(OK, tls=served, trust=Tls(verify=False)) as bench:
        assert (await bench.ask()).status == 200


async def test_a_connection_in_tls_that_died_is_replaced(served: ssl.SSLContext, certificates: Path):
    async with Bench(OK, tls=served, trust=Tls(ca_file=str(certificates / "good.pem"))) as bench:
        await bench.ask()
        bench.up.on_reuse = hang_up()
        assert (await bench.ask()).status == 200
        bench.up.on_reuse = None
        bench.up.then(broken("reset", after=10))
        assert (await bench.fails()).reason == "truncated"


async def test_plain_http_where_tls_should_be_fails(certificates: Path):
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    trust = Tls(ca_file=str(certificates / "good.pem"))
    async with Bench(url=f"https://127.0.0.1:{port}", trust=trust) as bench:
        assert (await bench.fails()).reason in ("tls", "reset")
    server.close()


async def test_a_handshake_that_never_ends_runs_out_of_the_time_to_connect(certificates: Path):
    gone = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Bench(url=f"https://127.0.0.1:{port}", connect_s=0.2, trust=Tls()) as bench:
        assert (await bench.fails()).reason == "connect_timeout"
        await gone.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_second_connection_takes_the_first_ones_session_up_again(
    served: ssl.SSLContext, certificates: Path, version: ssl.TLSVersion
):
    served.maximum_version = version
    async with Bench(OK, tls=served, trust=Tls(ca_file=str(certificates / "good.pem"))) as bench:
        resumed: list[bool] = []
        for _ in range(3):
            await bench.ask()
            connection = bench.pool.take()
            assert connection is not None
            spoken = connection.tls_object
            assert isinstance(spoken, ssl.SSLObject)
            resumed.append(bool(spoken.session_reused))
            connection.abort()
            await bench.settled()
        assert resumed == [False, True, True]


async def test_a_session_offered_to_an_impostor_is_no_use_to_it_and_is_forgotten(
    served: ssl.SSLContext, certificates: Path
):
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(certificates / "wrong-up.pem", certificates / "wrong-up.key")
    async with (
        FakeUpstream(OK, tls=impostor) as other,
        Bench(OK, tls=served, trust=Tls(ca_file=str(certificates / "good.pem"))) as bench,
    ):
        await bench.ask()
        connection = bench.pool.take()
        assert connection is not None
        connection.abort()
        await bench.settled()
        bench.pool.port = other.port
        assert (await bench.fails()).reason == "tls"
        bench.pool.port = bench.up.port
        assert (await bench.ask()).status == 200
        again = bench.pool.take()
        assert again is not None
        assert isinstance(again.tls_object, ssl.SSLObject)
        assert not again.tls_object.session_reused
        bench.pool.give_back(again)
