"""Unix sockets: an upstream behind one, callers through one, and the file that lies there before and after."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import pytest

from tests.http.house import request, until
from understudy.policies.service import Call, Failed, Request
from understudy.proxy.assembling import CannotStart
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.http.unix import UnixPlace
from understudy.proxy.settings.settings import UpstreamTier
from understudy.proxy.sidecar import Sidecar
from understudy.proxy.tiers.upstream import make_pool, upstream_tier

POLICIES = """
server:
  listen: ["127.0.0.1:0", "unix:{listen}"]
  access_log: false
routes:
  - name: all
    match: {{prefix: /}}
    dialect: plain
    tiers:
      - {{kind: upstream, name: up, url: "http://name.test/base", socket: "{up}"}}
"""


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
    await writer.drain()
    writer.close()


@pytest.mark.usefixtures("either_loop")
async def test_an_upstream_is_reached_through_its_socket_under_the_name_its_url_gives(tmp_path: Path):
    path = tmp_path / "up.sock"
    server = await asyncio.start_unix_server(said, path)
    tier = UpstreamTier(name="up", url="http://name.test/base", socket=str(path))
    loop = asyncio.get_running_loop()
    pool = make_pool(tier, loop, loop.time)
    ask = upstream_tier(tier, DIALECTS["plain"], pool, loop.time)
    answered = await ask(Call("pass", Request(b"GET", b"/x", []), id="1"))
    assert answered.body.startswith(b"GET /base/x HTTP/1.1\r\nhost: name.test\r\n")
    await until(lambda: pool.size == 0)
    server.close()
    path.unlink(missing_ok=True)
    with pytest.raises(Failed) as failed:
        await ask(Call("pass", Request(b"GET", b"/x", []), id="2"))
    assert failed.value.reason == "connect"
    pool.close()


@pytest.mark.real_clock(within_s=60.0)
async def test_the_whole_sidecar_stands_between_two_sockets_and_takes_its_own_away(tmp_path: Path):
    policies, up, listen = tmp_path / "policies", tmp_path / "up.sock", tmp_path / "in.sock"
    policies.mkdir()
    (policies / "p.yaml").write_text(POLICIES.format(listen=listen, up=up))
    server = await asyncio.start_unix_server(said, up)
    sidecar = Sidecar(policies, tmp_path / "state", {})
    await sidecar.start()
    assert stat.S_IMODE(listen.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(str(listen))
    writer.write(request("GET", "/over"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    assert (await reader.readline()) == b"GET /base/over HTTP/1.1\r\n"
    writer.close()
    rival = Sidecar(policies, tmp_path / "state", {})
    with pytest.raises(CannotStart, match="somebody listens there"):
        await rival.start()
    await rival.stop()
    assert listen.exists()
    await sidecar.drain_and_stop()
    assert not listen.exists()
    server.close()


def test_a_stale_socket_is_taken_away_and_any_other_file_is_left_alone(tmp_path: Path):
    path = tmp_path / "a.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    place = UnixPlace(str(path))
    place.socket.close()
    path.unlink()
    path.write_text("a letter")
    place.remove()
    assert path.read_text() == "a letter"
    with pytest.raises(OSError, match="no socket"):
        UnixPlace(str(path))
