"""Remember which collection a database's own ids stand for, so that they still mean something when it is gone.

    the database answers "docs is 4647e5e8…"  -->  learned, appended to the route's file, read again at the next start
    a search of 4647e5e8… comes, and the database is dead  -->  it is about docs

Clients of such a database name a collection once and go by its id ever after. A name whose id nobody ever saw gets one
that is made from the name, the same in every sidecar, so that a client can start while the database is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from understudy.policies.service import Answer, Call, Request, Service

log = logging.getLogger("understudy.handles")

HANDLES_MAX = 4096
"""How many collections of one route are remembered; the one longest unheard of goes first."""
FILE_BYTES_MAX = 4 * 1024 * 1024
"""How much is read of a file, and how long it may grow before it is written anew."""


class Learnt(msgspec.Struct, frozen=True, array_like=True):
    """A handle stands for a name, both qualified by the dialect. Without a name the handle is forgotten, without a
    handle the name."""

    handle: str
    name: str


class Naming(Protocol):
    """As much of a dialect as is needed to learn from what passes."""

    def named(self, request: Request, answer: Answer) -> list[Learnt]:
        """What a 2xx answer says of names, [] for one that is about something else."""
        ...


_LINE = msgspec.json.Decoder(Learnt)


class Handles:
    """The handles of one route. `path` is where they are kept, None for nowhere. Any thread may call it."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._handles: dict[str, str] = {}
        self._read_to = (0, 0)

    def learn(self, learnt: Iterable[Learnt]) -> list[Learnt]:
        """Take in what was learnt; what of it was new, and is to be `kept`."""
        with self._lock:
            return [each for each in learnt if self._take(each)]

    def keep(self, learnt: Iterable[Learnt]) -> None:
        """Write down what was new. Blocks; what can't be written is known until the process ends."""
        if self._path is None:
            return
        try:
            self._append(b"".join(msgspec.json.encode(each) + b"\n" for each in learnt))
        except OSError as error:
            log.warning("%s: %s", self._path, error)

    def name_of(self, handle: str) -> str | None:
        """The name that a handle stands for. Blocks for a moment where another process may have learned it."""
        name = self._names.get(handle)
        if name is None and self._catch_up():
            name = self._names.get(handle)
        return name

    def handle_of(self, name: str) -> str:
        """The handle of a name: the database's own, or one made of the name."""
        handle = self._handles.get(name)
        if handle is None and self._catch_up():
            handle = self._handles.get(name)
        return handle or made_handle(name)

    def name_among(self, handle: str, names: Callable[[], Iterable[str]]) -> str | None:
        """The name a handle stands for, learned or made of one of `names`."""
        name = self.name_of(handle)
        return name or next((each for each in names() if made_handle(each) == handle), None)

    def _take(self, each: Learnt) -> bool:
        if not each.handle or not each.name:
            handle = each.handle or self._handles.get(each.name, "")
            name = self._names.pop(handle, "")
            if self._handles.get(name) == handle:
                del self._handles[name]
            return bool(name)
        if self._names.get(each.handle) == each.name and self._handles.get(each.name) == each.handle:
            self._names.move_to_end(each.handle)
            return False
        # a name given anew: what its old handle stood for is gone
        self._names.pop(self._handles.pop(each.name, ""), None)
        self._handles.pop(self._names.pop(each.handle, ""), None)
        self._names[each.handle] = each.name
        self._handles[each.name] = each.handle
        while len(self._names) > HANDLES_MAX:
            _, name = self._names.popitem(last=False)
            self._handles.pop(name, None)
        return True

    def _append(self, lines: bytes) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size + len(lines) > FILE_BYTES_MAX:
            with self._lock:
                whole = [Learnt(handle, name) for handle, name in self._names.items()]
            fresh = self._path.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in whole))
            fresh.replace(self._path)
            return
        # one write of a few hundred bytes: lines of several processes do not mix
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, lines)
        finally:
            os.close(file)

    def _catch_up(self) -> bool:
        """Take in the file if it is another than last time: other workers write to it too."""
        if self._path is None:
            return False
        try:
            there = self._path.stat()
            if (there.st_ino, there.st_size) == self._read_to:
                return False
            with self._path.open("rb") as file:
                lines = file.read(FILE_BYTES_MAX).splitlines()
        except OSError:
            return False
        self._read_to = (there.st_ino, there.st_size)
        for line in lines:
            try:
                each = _LINE.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                # a line cut short by a crash; the rest stands
                continue
            self.learn((each,))
        return True


def made_handle(name: str) -> str:
    """A UUID made of a qualified name (the scope in front of its last slash stays in front)."""
    scope, slash, _ = name.rpartition("/")
    made = uuid.UUID(bytes=hashlib.sha256(b"understudy:" + name.encode("utf-8", "replace")).digest()[:16], version=4)
    return f"{scope}{slash}{made}"


def learning(service: Service, dialect: Naming, handles: Handles) -> Service:
    """Learn the handles in the answers of `service`, an upstream."""

    async def learning(call: Call) -> Answer:
        answer = await service(call)
        if answer.status < 300 and answer.stream is None and (told := dialect.named(call.request, answer)):
            new = handles.learn(told)
            if new:
                # a disk may take its time; nobody waits for it
                asyncio.get_running_loop().run_in_executor(None, handles.keep, new)
        return answer

    return learning
