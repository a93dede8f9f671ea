"""Callers who speak TLS, or should: handshakes that come to pass, and those that don't."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.http.house import Caller, Got, House, request, turns, until
from tests.http.test_streams import Flood
from tests.kit.acts import answer
from tests.kit.certificates import Authority
from understudy.policies.service import Answer, Call
from understudy.proxy.http.forwarding import Marks
from understudy.proxy.settings.certificates import credentials
from understudy.proxy.settings.settings import Limits, ServerTls

SPIFFE = "spiffe://example.org/ns/rag/sa/app"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.vouches("server")
    made.vouches("app", subject="/O=Acme, Inc/CN=app", names="DNS:app.example")
    made.vouches("spiffe", names=f"URI:{SPIFFE}")
    stranger = Authority(made.folder, "stranger")
    stranger.vouches("unknown")
    return made


def shown(authority: Authority, name: str) -> tuple[Path, Path]:
    return authority.folder / f"{name}.pem", authority.folder / f"{name}.key"


def ours(authority: Authority, **more: str) -> ssl.SSLContext:
    cert_file, key_file = shown(authority, "server")
    made = credentials(ServerTls(cert_file=str(cert_file), key_file=str(key_file), **more))  # pyright: ignore[reportArgumentType]
    assert made is not None
    return made.context


def mutual(authority: Authority, client: str = "require") -> ssl.SSLContext:
    return ours(authority, client_ca_file=str(authority.file), client=client)


async def connected(house: House, context: ssl.SSLContext) -> Caller:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port, ssl=context, server_hostname="localhost")
    return Caller(reader, writer)


async def asked(house: House, context: ssl.SSLContext, *data: bytes) -> Got:
    caller = await connected(house, context)
    caller.say(*(data or (request(),)))
    got = await caller.hears()
    await caller.leave()
    return got


def subject(house: House) -> bytes:
    """Of the last call."""
    call = house.logged[-1][2]
    assert call is not None
    return call.request.hop.subject


# --- well ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either_loop")
async def test_calls_go_through_in_tls_one_after_another_and_their_upstream_hears_of_it(authority: Authority):
    async with House(marks=Marks(forwarded="append")) as house:
        house.listener.tls = ours(authority)
        caller = await connected(house, authority.trusting())
        for _ in range(3):
            caller.say(request("POST", body=b"x" * 100_000))
            assert (await caller.hears()).status == 200
        assert caller.writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await caller.leave()
        headers = dict(house.up.heard[-1].headers)
        assert headers[b"x-forwarded-proto"] == b"https"
        assert headers[b"x-forwarded-for"] == b"127.0.0.1"
        await until(lambda: not house.listener.doors)
        assert not house.listener.tls_failures


@pytest.mark.usefixtures("either_loop")
async def test_alpn_settles_on_http_1_1_and_never_on_more(authority: Authority):
    context = authority.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with House() as house:
        house.listener.tls = ours(authority)
        caller = await connected(house, context)
        assert caller.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        await caller.leave()


@pytest.mark.usefixtures("either_loop")
async def test_large_answers_and_streams_come_whole_and_a_refusal_is_read(authority: Authority):
    async with House(body_bytes_max=1000) as house:
        house.listener.tls = ours(authority)
        flood = Flood(4_000_000)
        house.up.then(flood)
        assert (await asked(house, authority.trusting())).body == flood.whole
        house.up.then(answer(body=b"y" * 3_000_000))
        closing = request(headers=[(b"connection", b"close")])
        assert (await asked(house, authority.trusting(), closing)).body == b"y" * 3_000_000
        got = await asked(house, authority.trusting(), request("POST", body=b"x" * 500_000))
        assert got.status == 413
        await until(lambda: not house.listener.doors)


@pytest.mark.usefixtures("either_loop")
async def test_who_shows_a_certificate_is_known_by_it_and_is_a_tenant_of_its_own(authority: Authority):
    tenants: list[bytes] = []

    async def service(call: Call) -> Answer:
        tenants.append(call.tenant)
        return Answer(200, [], b"well")

    async with House(service=service) as house:
        house.listener.tls = mutual(authority)
        for name, known in (("app", b"O=Acme\\, Inc,CN=app"), ("spiffe", b"URI:" + SPIFFE.encode())):
            assert (await asked(house, authority.trusting(shown(authority, name)))).status == 200
            assert subject(house) == known
        house.listener.tls = mutual(authority, "optional")
        assert (await asked(house, authority.trusting())).status == 200
        assert subject(house) == b""
        # the head was the same each time, and what follows from a head is remembered
        assert len(set(tenants)) == 3
        assert tenants[-1] == b""


@pytest.mark.usefixtures("either_loop")
async def test_a_new_certificate_is_for_who_comes_next_and_drops_nobody(authority: Authority, tmp_path: Path):
    other = Authority(tmp_path, "other")
    other.vouches("server")
    async with House() as house:
        house.listener.tls = ours(authority)
        before = await connected(house, authority.trusting())
        house.listener.tls = ours(other)
        before.say(request())
        assert (await before.hears()).status == 200
        assert (await asked(house, other.trusting())).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            await connected(house, authority.trusting())
        await before.leave()
        # a caller may say so in an alert, or just leave
        await until(lambda: house.listener.tls_failures)
        assert sum(house.listener.tls_failures.values()) == 1


# --- not well --------------------------------------------------------------------------------------------------------


async def failed(house: House, reason: str) -> None:
    await until(lambda: house.listener.tls_failures and not house.listener.doors)
    assert dict(house.listener.tls_failures) == {reason: 1}
    assert not house.up.heard


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(
    ("client", "name", "reason"),
    [("require", "", "no_certificate"), ("require", "unknown", "untrusted"), ("optional", "unknown", "untrusted")],
)
async def test_a_caller_without_the_right_certificate_asks_nothing(
    authority: Authority, client: str, name: str, reason: str
):
    async with House() as house:
        house.listener.tls = mutual(authority, client)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            # in TLS 1.3 a caller hears of it only after its own part is done
            await asked(house, authority.trusting(shown(authority, name) if name else None))
        await failed(house, reason)


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"ET", "plain_http"),
        (request(), "plain_http"),
        (b"\x16\x03\x01" + b"\xff" * 200, "other"),
        (b"\0" * 500, "not_tls"),
        (b"\x80\x2e\x01\x03\x01", "not_tls"),
    ],
)
async def test_what_is_no_tls_on_a_tls_port_is_closed_at_once(authority: Authority, said: bytes, reason: str):
    async with House() as house:
        house.listener.tls = ours(authority)
        caller = await house.caller()
        caller.say(said)
        assert (await caller.rest()).startswith(b"HTTP/1.1 400 ") == (reason == "plain_http")
        await failed(house, reason)


@pytest.mark.usefixtures("either_loop")
async def test_tls_on_a_plain_port_is_a_400_at_once(authority: Authority):
    async with House() as house:
        with pytest.raises(ssl.SSLError):
            await connected(house, authority.trusting())
        await until(lambda: not house.listener.doors)
        assert house.listener.bad_requests == 1
        assert not house.up.heard


@pytest.mark.usefixtures("either_loop")
async def test_old_versions_are_refused(authority: Authority):
    context = authority.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with House() as house:
        house.listener.tls = ours(authority, min_version="TLSv1.3")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connected(house, context)
        await failed(house, "version")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_half_a_handshake_is_closed_when_a_head_would_have_been(authority: Authority, said: bytes):
    async with House(limits=Limits(head_s=10)) as house:
        house.listener.tls = ours(authority)
        caller = await house.caller()
        caller.say(said)
        began = house.loop.time()
        await caller.rest()
        assert 10 <= house.loop.time() - began < 13
        await failed(house, "timeout")


@pytest.mark.usefixtures("either_loop")
async def test_handshakes_take_places_and_who_finds_none_is_closed(authority: Authority):
    async with House(limits=Limits(connections_max=3)) as house:
        house.listener.tls = ours(authority)
        slow = [await house.caller() for _ in range(3)]
        await until(lambda: len(house.listener.doors) == 3)
        late = await house.caller()
        await late.ends()
        assert house.listener.refused_connections == 1
        for caller in slow:
            caller.hang_up()
        await until(lambda: not house.listener.doors)
        assert dict(house.listener.tls_failures) == {"left": 3}
        assert (await asked(house, authority.trusting())).status == 200


class Slow:
    """A caller who shakes hands one step at a time."""

    def __init__(self, caller: Caller, context: ssl.SSLContext) -> None:
        self.caller = caller
        self.heard, self.says = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.heard, self.says, server_hostname="localhost")

    def begin(self) -> bytes:
        """What is to be said first."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.says.read()

    async def finish(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.caller.say(self.says.read())
                self.heard.write(await self.caller.reader.read(65536))
        self.caller.say(self.says.read())

    async def rest(self) -> bytes:
        """Everything up to the goodbye, which is not answered."""
        heard = b""
        while True:
            try:
                if not (piece := self.tls.read(65536)):
                    return heard
                heard += piece
            except ssl.SSLZeroReturnError:
                return heard
            except ssl.SSLWantReadError:
                self.heard.write(await self.caller.reader.read(65536))


@pytest.mark.usefixtures("either_loop")
async def test_who_is_shaking_hands_when_draining_begins_is_told_and_when_it_ends_is_cut(authority: Authority):
    async with House() as house:
        house.listener.tls = ours(authority)
        callers = [Slow(await house.caller(), authority.trusting()) for _ in range(2)]
        for each in callers:
            each.caller.say(each.begin())
        await until(lambda: len(house.listener.doors) == 2)
        house.listener.drain()
        await callers[0].finish()
        assert (await callers[0].rest()).startswith(b"HTTP/1.1 503 ")
        house.listener.cut()
        await callers[1].caller.rest()
        await turns()
        assert not house.listener.doors


@pytest.mark.usefixtures("either_loop")
@pytest.mark.parametrize("step", [1, 5, 100])
async def test_a_handshake_in_small_pieces_is_put_together(authority: Authority, step: int):
    async with House() as house:
        house.listener.tls = ours(authority)
        slow = Slow(await house.caller(), authority.trusting())
        hello = slow.begin()
        for at in range(0, len(hello), step):
            slow.caller.say(hello[at : at + step])
            await turns(2)
        await slow.finish()
        slow.tls.write(request(headers=[(b"connection", b"close")]))
        slow.caller.say(slow.says.read())
        assert (await slow.rest()).startswith(b"HTTP/1.1 200 ")
        assert len(house.up.heard) == 1


async def test_who_does_not_answer_our_goodbye_is_closed_soon_but_not_before_it_has_taken_everything(
    authority: Authority,
):
    async with House(limits=Limits(idle_s=40)) as house:
        house.listener.tls = ours(authority)
        house.up.then(answer(body=b"y" * 8_000_000))
        slow = Slow(await house.caller(), authority.trusting())
        slow.caller.say(slow.begin())
        await slow.finish()
        slow.tls.write(request(headers=[(b"connection", b"close")]))
        slow.caller.say(slow.says.read())
        await asyncio.sleep(20)
        assert len(house.listener.doors) == 1
        began = house.loop.time()
        assert len(await slow.rest()) > 8_000_000
        await until(lambda: not house.listener.doors, within_s=20, step_s=0.5)
        assert house.loop.time() - began < 4
        await asyncio.sleep(2)
        assert not house.listener.shells
