"""What the admin port answers about changes, risks and the journal.

GET /changes   what was changed lately, and whose failures it may be     POST /changes  somebody deployed something
GET /risk      every component's risk, and how far it may be believed    GET /journal   what happened, the newest first
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, Protocol, cast, get_args

import msgspec
from aiohttp import web

from understudy.policies.events import WHOLE, Family
from understudy.proxy.control.entries import ENTRIES_MAX
from understudy.proxy.control.learning import Learner
from understudy.proxy.control.trusting import from_this_host
from understudy.proxy.reports.risks import entry_told, risk_told, suspect_told

NOTE_BYTES_MAX = 4096
NOTE_CHARS_MAX = 300
COUNT = 100
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
_COMPONENT = re.compile(r"[\x21-\x7e]{1,200}")


class Note(msgspec.Struct, frozen=True):
    """What somebody says was changed."""

    text: str
    component: str = WHOLE
    kind: str = "deploy"


class Teller(Protocol):
    """What the admin port asks of whom it tells of."""

    @property
    def learner(self) -> Learner | None: ...


class LearningAdmin:
    """The handlers."""

    def __init__(self, told: Teller) -> None:
        self._told = told

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/changes", self._changes)
        app.router.add_post("/changes", self._note)
        app.router.add_get("/risk", self._risk)
        app.router.add_get("/journal", self._journal)

    def _learner(self) -> Learner:
        learner = self._told.learner
        if learner is None:
            raise web.HTTPServiceUnavailable(text="not started yet\n")
        return learner

    async def _changes(self, _request: web.Request) -> web.Response:
        learner, now = self._learner(), time.time()
        changes = [change._asdict() for change in reversed(learner.changes)]
        failing = {name: learner.suspects([name], now) for name in learner.failing}
        suspects = {name: [suspect_told(one) for one in ranked] for name, ranked in failing.items()}
        return web.json_response({"changes": changes, "suspects": suspects})

    async def _note(self, request: web.Request) -> web.Response:
        """`curl -d 'app 2.1 is out' .../changes`, or JSON with text, component and kind."""
        if not from_this_host(request):
            return web.Response(status=403, text="changes are noted from this host alone, and by no web page\n")
        body = await request.content.read(NOTE_BYTES_MAX)
        try:
            if request.content_type == "application/json":
                note = msgspec.json.decode(body, type=Note)
            else:
                note = Note(body.decode())
        except ValueError:
            return web.Response(status=400, text="the body must be text, or JSON with text, component and kind\n")
        text = " ".join("".join(char if char.isprintable() else " " for char in note.text).split())[:NOTE_CHARS_MAX]
        if not text:
            return web.Response(status=400, text="what was changed?\n")
        if not _KIND.fullmatch(note.kind) or not _COMPONENT.fullmatch(note.component):
            return web.Response(status=400, text="kind is a word of a-z, 0-9 and _; component as /risk names it\n")
        self._learner().note(text, note.component, note.kind)
        return web.Response(text=f"noted: {text}\n")

    async def _risk(self, _request: web.Request) -> web.Response:
        return web.json_response(risk_told(self._learner(), time.time()))

    async def _journal(self, request: web.Request) -> web.Response:
        """`?family=failure&component=…&since_s=3600&count=100`, all of them optional."""
        query, journal = request.query, self._learner().journal
        if journal is None:
            return web.Response(status=404, text="no journal is kept\n")
        families = query.getall("family", [])
        if not set(families) <= set(get_args(Family)):
            return web.Response(status=400, text=f"family is one of: {', '.join(get_args(Family))}\n")
        try:
            count = min(ENTRIES_MAX, int(query.get("count", COUNT)))
            since = time.time() - float(query["since_s"]) if "since_s" in query else 0.0
        except ValueError:
            return web.Response(status=400, text="count and since_s are numbers\n")
        entries = await asyncio.get_running_loop().run_in_executor(
            None, journal.entries, cast("list[Family]", families), query.get("component", ""), since, max(0, count)
        )
        told: list[dict[str, Any]] = [entry_told(entry) for entry in entries]
        return web.json_response({"entries": told, "bytes": journal.bytes()})
