"""Say what is wrong with the receivers of alerts that no type can say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from understudy.proxy.settings.alert import Alerts, Receiver
from understudy.proxy.settings.spots import Fault, Place, named

OWN_LABELS = ("alertname", "name", "resource", "route", "severity")
RECEIVERS_MAX = 16
_LABEL = re.compile(r"[a-z_][a-z0-9_]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")


def alert_faults(alerts: Alerts, at: Place) -> Iterator[Fault]:
    """What doesn't go together. What a URL or a header holds stays unsaid: it may be a key."""
    if len(alerts.receivers) > RECEIVERS_MAX:
        yield from at.fault(f"{len(alerts.receivers)} receivers, more than {RECEIVERS_MAX}", "receivers")
    for name in alerts.labels:
        if name in OWN_LABELS:
            yield from at.at("labels").at(named(name)).fault("this label is ours to set")
        elif not _LABEL.fullmatch(name):
            yield from at.at("labels").at(named(name)).fault("a label's name is of a-z, 0-9 and _")
    first: dict[str, int] = {}
    for n, receiver in enumerate(alerts.receivers):
        if first.setdefault(receiver.name, n) != n:
            yield from at.fault("another receiver has this name", f"receivers[{n}].name")
        yield from _receiver_faults(receiver, at.at(f"receivers[{n}]"))


def _receiver_faults(receiver: Receiver, at: Place) -> Iterator[Fault]:
    if receiver.kind == "command":
        if not receiver.command:
            yield from at.fault("which program? A receiver of kind command needs one", "command", reads=["kind"])
        if receiver.url is not None:
            yield from at.fault("a command has no url", "url", reads=["kind"])
        return
    if receiver.command:
        yield from at.fault(f"a receiver of kind {receiver.kind} runs no command", "command", reads=["kind"])
    if receiver.url is None:
        yield from at.fault(f"where is it? A receiver of kind {receiver.kind} needs a url", "url", reads=["kind"])
    elif not is_web_address(receiver.url.reveal()):
        yield from at.fault("expected http://host[:port][/path] or https://…", "url")
    for name, value in receiver.headers.items():
        if not _TOKEN.fullmatch(name) or not _PRINTABLE.fullmatch(value.reveal()):
            yield from at.at("headers").at(named(name)).fault("this can't be sent as a header")


def is_web_address(url: str) -> bool:
    """Whether this can be posted to."""
    try:
        parts = urlsplit(url)
        # asked for, so that a port that is none is found out here
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
