"""Look at one answer of an upstream now and then: which server and which model it comes from, as it says itself.

    armed, every half minute --the next answer--> seen: server, version headers, model, system_fingerprint --> disarmed
                                                  shown: where a prompt is put, and to which model

A call pays for it by asking whether its endpoint's peek is armed: some nanoseconds. Nothing of what callers wrote or
were told is kept: only what stands at those four places, where it looks like a name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from understudy.policies.service import Answer, Call, Request
from understudy.proxy.http.upstream_stream import UpstreamStream

HEADERS = (b"server", b"openai-version", b"x-version", b"x-app-version", b"x-server-version")
LOOKED_AT_BYTES = 16 * 1024
"""At either end of an answer's body: the names stand before or behind what is long in it."""
MODELS_MAX = 8
"""Models that are told apart by what was asked for; callers choose them."""
_NAME = rb'"\s*:\s*"([\w.:/@+-]{1,100})"'
_MODEL = re.compile(rb'(?<!\\)"model' + _NAME)
_FINGERPRINT = re.compile(rb'(?<!\\)"system_fingerprint' + _NAME)
_VALUE = re.compile(rb"[\x20-\x7e]{1,100}")


_VERSION = re.compile(rb"(?:^|&)(api-version=[\w.-]{1,40})(?:&|$)")


class Shown(NamedTuple):
    """How callers put prompts to an endpoint: the path behind its base, with the version that Azure wants and nothing
    else of the query, and the model's name."""

    target: bytes
    model: str


class Peek:
    """One endpoint's. `seen` is by what it is about: `server`, `model gpt-x`, `system_fingerprint gpt-x`, ..."""

    __slots__ = ("armed", "seen", "shown")

    def __init__(self) -> None:
        self.armed = False
        self.seen: dict[str, str] = {}
        self.shown: Shown | None = None

    def look(self, call: Call, answer: Answer) -> None:
        """Take from this answer what it says of itself, and rest."""
        if answer.status >= 300:
            # a proxy's own error page says nothing of what is behind it
            return
        self.armed = False
        for name, value in answer.headers:
            low = name.lower()
            if low in HEADERS and _VALUE.fullmatch(value):
                self.seen[low.decode()] = value.decode()
        if call.kind not in ("embed", "generate"):
            return
        asked = call.request.body
        of = _MODEL.search(asked[:LOOKED_AT_BYTES]) or _MODEL.search(asked[-LOOKED_AT_BYTES:])
        model = of[1].decode() if of else ""
        if call.kind == "generate":
            self.shown = _shown(call.request, model)
        if not answer.packed:
            self._read(model, _part(answer))

    def _read(self, model: str, told: bytes) -> None:
        for kind, pattern in (("model", _MODEL), ("system_fingerprint", _FINGERPRINT)):
            found = pattern.search(told)
            key = f"{kind} {model}".rstrip()
            if found and (key in self.seen or sum(each.startswith(kind) for each in self.seen) < MODELS_MAX):
                self.seen[key] = found[1].decode()


def _shown(request: Request, model: str) -> Shown:
    version = _VERSION.search(request.target.partition(b"?")[2])
    return Shown(request.path + (b"?" + version[1] if version else b""), model)


def _part(answer: Answer) -> bytes:
    if answer.stream is None:
        body = answer.body
        return body if len(body) <= 2 * LOOKED_AT_BYTES else body[:LOOKED_AT_BYTES] + body[-LOOKED_AT_BYTES:]
    return answer.stream.held[:LOOKED_AT_BYTES] if isinstance(answer.stream, UpstreamStream) else b""
