"""Tell receivers of alerts: Alertmanager, webhooks, Slack, a command.

Each has a line of its own, and none holds up another, or a call.

    notices --> a bounded queue for each receiver --> tries, further and further apart --> told | dropped
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from understudy.policies.alerts import Notice
from understudy.proxy.control.hooks import feed
from understudy.proxy.settings.alert import Alerts, Receiver

QUEUE_MAX = 1000
"""Notices that wait for a receiver; the oldest go first."""
BATCH_MAX = 100
PAUSE_S, PAUSE_S_MAX = 1.0, 60.0
OLD_S = 900.0
"""What could not be told for so long is dropped: what still goes on is told anew by then."""
TEXT_CHARS_MAX = 3000
NEVER = "0001-01-01T00:00:00Z"
"""How Alertmanager's own webhook says that an alert has not ended."""

log = logging.getLogger("understudy.alerts")

Run = Callable[[Sequence[str], bytes, float], Any]


class Line:
    """One receiver: what waits for it, and who sends it on."""

    def __init__(self, receiver: Receiver, senders: Senders) -> None:
        self.receiver = receiver
        self._senders = senders
        self._waiting: deque[tuple[float, Notice]] = deque()
        self._more = asyncio.Event()
        self._told_at: dict[str, float] = {}
        self.task = asyncio.get_running_loop().create_task(self._run())

    def add(self, now: float, notice: Notice, repeat_s: float) -> None:
        """Take a notice, if it is one for this receiver."""
        receiver = self.receiver
        if dict(notice.alert.labels)["severity"] == "warning" and receiver.severity_min == "critical":
            return
        if receiver.kind != "alertmanager" and not self._is_due(now, notice, repeat_s):
            return
        if len(self._waiting) >= QUEUE_MAX:
            self._waiting.popleft()
            self._senders.count(receiver, "dropped")
        self._waiting.append((now, notice))
        self._more.set()

    def _is_due(self, now: float, notice: Notice, repeat_s: float) -> bool:
        """Whether people want to hear it: what begins, what ends, and what goes on only now and then."""
        fingerprint = notice.alert.fingerprint
        told_at = self._told_at.get(fingerprint, now if not notice.is_news else 0.0)
        if not notice.is_news and (notice.ends_at is not None or not repeat_s or now - told_at < repeat_s):
            self._told_at.setdefault(fingerprint, told_at)
            return False
        if notice.ends_at is not None:
            self._told_at.pop(fingerprint, None)
        else:
            self._told_at[fingerprint] = now
        return True

    async def _run(self) -> None:
        pause_s = PAUSE_S
        while True:
            await self._more.wait()
            batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
            if not self._waiting:
                self._more.clear()
            if not batch:
                continue
            why = await self._senders.send(self.receiver, [notice for _, notice in batch])
            if not why:
                pause_s = PAUSE_S
                self._senders.count(self.receiver, "sent", len(batch))
                continue
            log.warning("receiver %s was not told: %s", self.receiver.name, why)
            self._senders.count(self.receiver, "failed")
            self._put_back(batch)
            await asyncio.sleep(pause_s * (0.5 + self._senders.dice() / 2))
            pause_s = min(PAUSE_S_MAX, pause_s * 2)

    def _put_back(self, batch: Sequence[tuple[float, Notice]]) -> None:
        now = self._senders.now
        kept = [(at, notice) for at, notice in batch if now - at < OLD_S]
        room = QUEUE_MAX - len(self._waiting)
        kept = kept[len(kept) - min(len(kept), room) :]
        self._senders.count(self.receiver, "dropped", len(batch) - len(kept))
        self._waiting.extendleft(reversed(kept))
        if self._waiting:
            self._more.set()


class Senders:
    """All receivers. `results` counts by receiver and by what came of it: sent, failed, dropped."""

    def __init__(self, *, dice: Callable[[], float] = random.random) -> None:
        self.dice = dice
        self.now = 0.0
        self.results: Counter[tuple[str, str]] = Counter()
        self._lines: dict[str, Line] = {}
        self._session: aiohttp.ClientSession | None = None

    def tell(self, notices: Sequence[Notice], alerts: Alerts, now: float) -> None:
        """Queue these for whoever is named in `alerts`; a receiver that is named no more is told nothing more."""
        self.now = now
        wanted = {receiver.name: receiver for receiver in alerts.receivers}
        for name, line in list(self._lines.items()):
            if wanted.get(name) != line.receiver:
                line.task.cancel()
                del self._lines[name]
        for receiver in wanted.values():
            line = self._lines.get(receiver.name)
            if line is None:
                line = self._lines[receiver.name] = Line(receiver, self)
            for notice in notices:
                line.add(now, notice, alerts.repeat_s)

    def count(self, receiver: Receiver, result: str, many: int = 1) -> None:
        if many:
            self.results[receiver.name, result] += many

    async def send(self, receiver: Receiver, notices: Sequence[Notice]) -> str:
        """Tell one receiver; why it did not work, in words without its address, or ''."""
        try:
            if receiver.kind == "command":
                return await _commanded(receiver, msgspec.json.encode(webhook_payload(receiver.name, notices)))
            url, body = _letter(receiver, notices)
            return await self._posted(receiver, url, body)
        except TimeoutError:
            return f"no answer within {receiver.timeout_s:g} s"
        except Exception as fault:
            # its text may hold the address, which may be a key; and whatever it is, the next alert is still to be told
            return type(fault).__name__

    async def _posted(self, receiver: Receiver, url: str, body: object) -> str:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {"content-type": "application/json"}
        headers |= {name: value.reveal() for name, value in receiver.headers.items()}
        timeout = aiohttp.ClientTimeout(total=receiver.timeout_s)
        encoded = msgspec.json.encode(body)
        async with self._session.post(
            url, data=encoded, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            return "" if answer.status < 300 else f"status {answer.status}"

    async def close(self) -> None:
        """Stop; what was not told by now is told by the next process, since what still goes on is told again."""
        for line in self._lines.values():
            line.task.cancel()
        await asyncio.gather(*(line.task for line in self._lines.values()), return_exceptions=True)
        self._lines.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _commanded(receiver: Receiver, payload: bytes) -> str:
    process = await asyncio.create_subprocess_exec(
        *receiver.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(receiver.timeout_s):
            await feed(process, payload)
            await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return "" if process.returncode == 0 else f"exit status {process.returncode}"


# --- what is written -----------------------------------------------------------------------------------------------


def _letter(receiver: Receiver, notices: Sequence[Notice]) -> tuple[str, object]:
    """Where to post, and what. Raises ValueError without an address."""
    if receiver.url is None:
        raise ValueError("no url")
    url = receiver.url.reveal()
    if receiver.kind == "alertmanager":
        return url.rstrip("/") + "/api/v2/alerts", [_posted_alert(notice) for notice in notices]
    if receiver.kind == "slack":
        return url, {"text": slack_text(notices)}
    return url, webhook_payload(receiver.name, notices)


def _posted_alert(notice: Notice) -> dict[str, object]:
    """As Alertmanager's API v2 takes it; without an end it lapses by itself when it is told no more."""
    told: dict[str, object] = {
        "labels": dict(notice.alert.labels),
        "annotations": dict(notice.alert.annotations),
        "startsAt": _at(notice.starts_at),
    }
    return told if notice.ends_at is None else {**told, "endsAt": _at(notice.ends_at)}


def webhook_payload(receiver: str, notices: Sequence[Notice]) -> dict[str, object]:
    """As Alertmanager's own webhook (version 4) says it."""
    alerts = [
        {
            **_posted_alert(notice),
            "status": "firing" if notice.ends_at is None else "resolved",
            "endsAt": NEVER if notice.ends_at is None else _at(notice.ends_at),
            "generatorURL": "",
            "fingerprint": notice.alert.fingerprint,
        }
        for notice in notices
    ]
    labels = [dict(notice.alert.labels) for notice in notices]
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        "status": "firing" if any(notice.ends_at is None for notice in notices) else "resolved",
        "receiver": receiver,
        "groupLabels": {},
        "commonLabels": _common(labels),
        "commonAnnotations": _common([dict(notice.alert.annotations) for notice in notices]),
        "externalURL": "",
        "alerts": alerts,
    }


def slack_text(notices: Sequence[Notice]) -> str:
    """A line for each, the worst first; what a route is called can't make a link or a mention."""
    lines: list[str] = []
    for notice in notices:
        labels, told = dict(notice.alert.labels), notice.alert.annotations
        word = "resolved" if notice.ends_at is not None else labels["severity"]
        lines.append(f"*{word}* {labels['alertname']}: {told.get('summary', '')} (runbook: {told.get('runbook', '')})")
    text = "\n".join(sorted(lines))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")[:TEXT_CHARS_MAX]


def _common(each: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = each
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
