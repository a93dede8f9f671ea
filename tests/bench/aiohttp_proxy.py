"""What most people would write: aiohttp's server with a handler that calls its ClientSession, on uvloop.

python -m tests.bench.aiohttp_proxy --port PORT --upstream PORT
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop
from aiohttp import ClientSession, TCPConnector, web

HOP_BY_HOP = frozenset(("connection", "content-length", "host", "keep-alive", "transfer-encoding"))
SESSION = web.AppKey("session", ClientSession)


async def _proxy(request: web.Request) -> web.StreamResponse:
    session = request.app[SESSION]
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
    body = await request.read()
    async with session.request(request.method, request.rel_url.raw_path_qs, data=body, headers=headers) as answer:
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP]
        if answer.content_length is not None:
            return web.Response(status=answer.status, headers=_multi(kept), body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=_multi(kept))
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def _multi(headers: list[tuple[str, str]]) -> dict[str, str]:
    """No header of the bench's comes twice."""
    return dict(headers)


async def _serve(port: int, upstream_port: int) -> None:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", _proxy)
    connector = TCPConnector(limit=0)
    base = f"http://127.0.0.1:{upstream_port}"
    async with ClientSession(base, connector=connector, auto_decompress=False) as session:
        app[SESSION] = session
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.port, arguments.upstream))
