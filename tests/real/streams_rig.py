"""What cases of streams need: routes for each variant and dialect, a caller, and upstreams that take turns."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.kit.acts import pieces
from tests.kit.fake_upstream import Act, Heard, Wire
from tests.kit.processes import Sidecar
from tests.kit.voices import VOICES, Told, Voice

SECONDS_MAX = 40
TOKENS = [f"word{n} " for n in range(60)]
# a clock that rings here is short in the variant that it rings in, and the others too long for a busy machine to reach
CLOCKS = "first_content_s: 15, gap_s: 15"
SILENT = "first_content_s: 15, gap_s: 2"
TWO = "[*first, {{kind: upstream, name: second, url: '{second}', headers: {{authorization: second-key}}}}]"
PREFILL = "[*first, {{kind: upstream, name: second, url: '{second}', prefill: true}}]"
LARGER = "{{provider: [{provider}], message: 'too long|available context|context_length|for context', outcome: caller"
VARIANTS = {
    "error": f"stream: {{{{{CLOCKS}}}}}\n    tiers: {TWO}",
    "headless": f"stream: {{{{headers_s: 2, first_content_s: 15, gap_s: 15}}}}\n    tiers: {TWO}",
    "wordless": f"stream: {{{{headers_s: 15, first_content_s: 2.5, gap_s: 15}}}}\n    tiers: {TWO}",
    "continue": f"stream: {{{{{CLOCKS}, after_first_content: continue}}}}\n    tiers: {PREFILL}",
    "across": f"stream: {{{{{CLOCKS}, after_first_content: continue}}}}\n    tiers: "
    + PREFILL.replace("prefill: true", "prefill: true, speaks: {other}"),
    "silent-error": f"stream: {{{{{SILENT}}}}}\n    tiers: {TWO}",
    "silent-continue": f"stream: {{{{{SILENT}, after_first_content: continue}}}}\n    tiers: {PREFILL}",
    "silent-buffer": f"stream: {{{{{SILENT}, after_first_content: buffer}}}}\n    tiers: {TWO}",
    "alone": "tiers: [*first]",
    "paced": f"stream: {{{{contents_per_s_min: 10, contents_within_s: 0.5}}}}\n    tiers: {TWO}",
    "thinking": "stream: {{first_content_s: 1.5, gap_s: 15, keep_alive_s: 1, "
    f"patient: [{{{{models: ['think*'], first_content_s: 15}}}}]}}}}\n    tiers: {TWO}",
    "cached": f"cache: {{{{enabled: true, answers: always}}}}\n    tiers: {TWO}",
    "guarded": f"breaker: {{{{enabled: true, consecutive: 3}}}}\n    tiers: {TWO}",
    "breaking": f"breaker: {{{{enabled: true, consecutive: 3, open_s: 60}}}}\n    tiers: {TWO}",
    "telling": f"breaker: {{{{enabled: true, consecutive: 3, open_s: 60}}}}\n    tiers: {TWO}",
    "larger": f"outcomes: [{LARGER}, follow: tier, reason: context_length}}}}]\n    tiers: {TWO}",
    "again": "retry: {{attempts: 2, base_s: 0.01}}\n    tiers: [{{kind: upstream, name: first, url: '{first}', "
    "headers: {{authorization: first-key}}, speaks: {dialect}, models: {{m: renamed}}}}, {{kind: upstream, "
    "name: second, url: '{second}', headers: {{authorization: second-key}}}}]",
}
OTHERS = {"openai-chat": "anthropic", "anthropic": "ollama-chat", "ollama-chat": "openai-chat"}
PROVIDERS = {"openai-chat": "openai", "anthropic": "anthropic", "ollama-chat": "ollama"}


def policies(first: str, second: str) -> str:
    routes = ""
    for dialect in VOICES:
        for variant, text in VARIANTS.items():
            if dialect == "ollama-chat":
                text = text.replace("keep_alive_s: 1, ", "")
            names = {"dialect": dialect, "provider": PROVIDERS[dialect], "other": OTHERS[dialect]}
            told = text.format(first=first, second=second, **names)
            told = told.replace("*first", f"{{kind: upstream, name: first, url: '{first}'}}")
            match = f"{{prefix: /{variant}-{dialect}, strip: true}}"
            routes += f"  - name: {variant}-{dialect}\n    match: {match}\n    dialect: {dialect}\n    {told}\n"
    return f"""
server:
  listen: "${{UNDERSTUDY_LISTEN}}"
  admin: "${{UNDERSTUDY_ADMIN}}"
  access_log: false
  shed: {{enabled: false}}
defaults:
  retry: {{attempts: 1}}
  breaker: {{enabled: false}}
  quota: {{enabled: false}}
  deadline: {{total_s: 18}}
  # whether an upstream is well is another test's: one that was silent or shut by turns is to be asked all the same
  ramp: {{enabled: false}}
routes:
{routes}"""


# --- a caller --------------------------------------------------------------------------------------------------------


@dataclass
class Got:
    """What came of one request."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list[bytes])
    aborted: bool = False
    told: Told = field(default_factory=Told)

    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Asks one route of the sidecar, with one voice, byte by byte."""

    def __init__(self, sidecar: Sidecar, voice: Voice, variant: str) -> None:
        self.sidecar = sidecar
        self.voice = voice
        self.route = f"{variant}-{voice.name}"

    @contextmanager
    def asking(self, **more: Any) -> Iterator[http.client.HTTPResponse]:
        """The answer, as soon as its head is there; hung up on at the end."""
        client = http.client.HTTPConnection("127.0.0.1", self.sidecar.port, timeout=SECONDS_MAX)
        try:
            self.say(client, **more)
            yield client.getresponse()
        finally:
            client.close()

    def say(self, client: http.client.HTTPConnection, **more: Any) -> None:
        headers = {"content-type": "application/json", "authorization": "callers-key"}
        body = json.dumps(self.voice.asked(**more))
        client.request("POST", f"/{self.route}{self.voice.path}", body, headers)

    def ask(self, **more: Any) -> Got:
        """The whole answer, or as far as it came."""
        with self.asking(**more) as response:
            got = Got(response.status, {name.lower(): value for name, value in response.getheaders()})
            try:
                while piece := response.read1():
                    got.pieces.append(piece)
            except (http.client.HTTPException, OSError):
                got.aborted = True
        got.body = b"".join(got.pieces)
        if got.status == 200 and got.headers.get("content-type", "").startswith(self.voice.content_type):
            got.told = self.voice.read(got.body)
        return got

    def outcomes(self) -> dict[tuple[str, str, str], float]:
        """What came of asking this route's tiers: (tier, outcome, reason) -> count."""
        found: dict[tuple[str, str, str], float] = {}
        for line in self.metrics("understudy_tier_outcomes_total"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            found[labels["tier"], labels["outcome"], labels["reason"]] = float(line.rpartition(" ")[2])
        return found

    def metrics(self, name: str) -> list[str]:
        with urllib.request.urlopen(self.sidecar.admin_url + "/metrics", timeout=SECONDS_MAX) as answered:
            lines = answered.read().decode().splitlines()
        return [line for line in lines if line.startswith(name + "{") and f'route="{self.route}"' in line]


def stream(voice: Voice, parts: Sequence[bytes], **options: Any) -> Act:
    return pieces(parts, headers=[(b"content-type", voice.content_type.encode())], **options)


def whole(voice: Voice, *texts: str) -> Act:
    return stream(voice, voice.whole(*texts))


def is_told_of_a_break(got: Got) -> bool:
    """Whether no caller could take it for whole: an error in band, no end, and a body that is closed in order."""
    return bool(got.told.errors) and not got.told.ended and not got.aborted


class Gate:
    """What an upstream waits for until the caller says go: nothing here depends on how fast a machine is."""

    def __init__(self) -> None:
        self._turn = threading.Semaphore(0)

    def open(self) -> None:
        self._turn.release()

    async def passed(self) -> None:
        assert await asyncio.to_thread(self._turn.acquire, timeout=SECONDS_MAX), "nobody opened it"


def held(gate: Gate, act: Act) -> Act:
    """The act once the gate was opened."""

    async def play(wire: Wire, heard: Heard) -> None:
        await gate.passed()
        await act(wire, heard)

    return play


def in_turns(voice: Voice, parts: Sequence[bytes], gate: Gate) -> Act:
    """Each part when the gate was opened once more."""

    async def play(wire: Wire, _heard: Heard) -> None:
        await wire.head(200, [(b"content-type", voice.content_type.encode()), (b"transfer-encoding", b"chunked")])
        for part in parts:
            await gate.passed()
            await wire.chunk(part)
        await wire.write(b"0\r\n\r\n")

    return play
