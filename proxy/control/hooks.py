"""Run the operator's own hooks: a command with bounds on its time, its environment and its output, or a webhook.

what is wrong --UNDERSTUDY_* variables, JSON on standard input--> command --exit status 0--> done
              --JSON, the same idempotency key each time--------> webhook --status 2xx-----> done
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from understudy.proxy.settings.recovery import Hook

if TYPE_CHECKING:
    import aiohttp

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What a command finds in its environment beside what the policies give it: none of it is a key."""
OUTPUT_BYTES_MAX = 4096
"""How much of what a command says is kept; the rest is read, so that it does not hang, and thrown away."""
SAID_CHARS_MAX = 160
READ_BYTES = 4096

log = logging.getLogger("understudy.recovery")


class Hooks:
    """Runs hooks. `environ` is where inherited variables come from."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._session: aiohttp.ClientSession | None = None

    async def run(self, hook: Hook, told: Mapping[str, str], key: str) -> str:
        """Run one; why it did not work, in words that hold no address and no key, or ''. `told` says what is wrong, and
        `key` is the same whenever the same is told."""
        try:
            async with asyncio.timeout(hook.wait_s_max):
                if hook.command:
                    return await self._commanded(hook, told)
                return await self._posted(hook, told, key)
        except TimeoutError:
            return f"not done within {hook.wait_s_max:g} s"
        except Exception as fault:
            # its text may hold the address, which may be a key
            return type(fault).__name__

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _posted(self, hook: Hook, told: Mapping[str, str], key: str) -> str:
        import aiohttp

        if hook.url is None:
            return "no url"
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {"content-type": "application/json", "idempotency-key": key}
        headers |= {name: value.reveal() for name, value in hook.headers.items()}
        async with self._session.post(
            hook.url.reveal(), data=msgspec.json.encode(dict(told)), headers=headers, allow_redirects=False
        ) as answer:
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"

    async def _commanded(self, hook: Hook, told: Mapping[str, str]) -> str:
        process = await asyncio.create_subprocess_exec(
            *hook.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment(hook, told),
            # a group of its own, so that what it has started can be ended with it
            start_new_session=True,
        )
        try:
            said, _ = await asyncio.gather(_read(process), feed(process, msgspec.json.encode(dict(told))))
            status = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if status == 0:
            return ""
        line = " ".join(said.decode("utf-8", "replace").split())[:SAID_CHARS_MAX]
        return f"exit status {status}" + (f": {line}" if line else "")

    def environment(self, hook: Hook, told: Mapping[str, str]) -> dict[str, str]:
        """All the variables that a command has."""
        inherited = {name: self._environ[name] for name in INHERITED if name in self._environ}
        own = {f"UNDERSTUDY_{name.upper()}": value.replace("\0", "") for name, value in told.items()}
        return inherited | {name: value.reveal() for name, value in hook.env.items()} | own


async def _read(process: asyncio.subprocess.Process) -> bytes:
    """The first of what it says, all of which is read."""
    said = b""
    assert process.stdout is not None
    while piece := await process.stdout.read(READ_BYTES):
        said = (said + piece)[:OUTPUT_BYTES_MAX]
    return said


async def feed(process: asyncio.subprocess.Process, payload: bytes) -> None:
    """Write it to the standard input, as far as it is read."""
    assert process.stdin is not None
    # uvloop's transport of a pipe that is closed already raises RuntimeError
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        process.stdin.write(payload)
        await process.stdin.drain()
    process.stdin.close()
