"""Say what is wrong with ladders and hooks that no type can say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

from understudy.policies.events import Role
from understudy.policies.recovery import LADDERS, RUNGS
from understudy.proxy.settings.alert_rules import is_web_address
from understudy.proxy.settings.recovery import Hook, Recovery
from understudy.proxy.settings.spots import Fault, Place, named, shown

HOOKS_MAX = 32
RUNGS_MAX = 16
OWN_VARIABLES = "UNDERSTUDY_"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")


def recovery_faults(recovery: Recovery, at: Place) -> Iterator[Fault]:
    """What doesn't go together. What a URL, a header or a variable holds stays unsaid: it may be a key."""
    if recovery.pause_s_max < recovery.pause_s:
        yield from at.fault("the longest period is shorter than the first", "pause_s_max", reads=["pause_s"])
    if len(recovery.hooks) > HOOKS_MAX:
        yield from at.fault(f"{len(recovery.hooks)} hooks, more than {HOOKS_MAX}", "hooks")
    first: dict[str, int] = {}
    for n, hook in enumerate(recovery.hooks):
        if first.setdefault(hook.name, n) != n:
            yield from at.fault("another hook has this name", f"hooks[{n}].name")
        if hook.name in RUNGS:
            yield from at.fault("a rung has this name already", f"hooks[{n}].name")
        yield from _hook_faults(hook, at.at(f"hooks[{n}]"))
    for role, rungs in recovery.ladders.items():
        yield from _ladder_faults(role, rungs, first, at)
    for n, name in enumerate(recovery.escalate):
        if name not in first:
            yield from at.fault(f"there is no hook {_words(at, f'escalate[{n}]')}", f"escalate[{n}]", reads=["hooks"])
        elif name in recovery.escalate[:n]:
            yield from at.fault("named twice", f"escalate[{n}]")


def _ladder_faults(role: str, rungs: list[str], hooks: dict[str, int], at: Place) -> Iterator[Fault]:
    where = at.at("ladders").at(named(role))
    if role not in LADDERS:
        roles = [each for each in get_args(Role) if each in LADDERS]
        yield from where.fault(f"no such role; there are {', '.join(roles)}")
        return
    if len(rungs) > RUNGS_MAX:
        yield from where.fault(f"{len(rungs)} rungs, more than {RUNGS_MAX}")
    for n, rung in enumerate(rungs):
        if rung in rungs[:n]:
            yield from where.fault("named twice", f"[{n}]")
        elif rung in RUNGS and rung not in LADDERS[role]:
            yield from where.fault(f"this does nothing for a {role}: {', '.join(LADDERS[role])} do", f"[{n}]")
        elif rung not in RUNGS and rung not in hooks:
            yield from where.fault(f"{_words(where, f'[{n}]')} is neither a rung nor a hook", f"[{n}]")


def _words(at: Place, key: str) -> str:
    """A value as the file has it: what a variable holds is never repeated."""
    return repr(shown(at.written(key)))


def _hook_faults(hook: Hook, at: Place) -> Iterator[Fault]:
    if bool(hook.command) == (hook.url is not None):
        yield from at.fault("a hook has either a command or a url", "command", reads=["url"])
    if hook.command and (not hook.command[0] or any("\0" in word for word in hook.command)):
        yield from at.fault("this can't be run", "command")
    if hook.url is not None and not is_web_address(hook.url.reveal()):
        yield from at.fault("expected http://host[:port][/path] or https://…", "url")
    if hook.env and not hook.command:
        yield from at.fault("a webhook has no environment", "env", reads=["url"])
    if hook.headers and hook.url is None:
        yield from at.fault("a command has no headers", "headers", reads=["url"])
    for name, value in hook.env.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value.reveal():
            yield from at.at("env").at(named(name)).fault("this can't be an environment variable")
        elif name.startswith(OWN_VARIABLES):
            yield from at.at("env").at(named(name)).fault("this variable is ours to set")
    for name, value in hook.headers.items():
        if not _TOKEN.fullmatch(name) or not _PRINTABLE.fullmatch(value.reveal()):
            yield from at.at("headers").at(named(name)).fault("this can't be sent as a header")
