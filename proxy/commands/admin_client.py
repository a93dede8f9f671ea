"""The commands' way to a running sidecar: its admin port, asked and told."""

from __future__ import annotations

import argparse
import getpass
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from understudy.proxy.cli import Complaint, add_policies
from understudy.proxy.commands.policies import sound_settings

WAIT_S = 5


class Silent(Complaint):
    """No sidecar answers on the admin port."""


def add_admin(parser: argparse.ArgumentParser, *, json: bool = False) -> None:
    """Let a command be told where the admin port is, or by whose policies to find it; and to print JSON, if it can."""
    parser.add_argument("--admin", metavar="HOST:PORT", help="the sidecar's admin port (default: as its policies say)")
    add_policies(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="as JSON")


def ask(arguments: argparse.Namespace, path: str, told: str | None = None) -> str:
    """What the admin port says to a GET, or to a POST of what is `told`.

    Raises Silent where nobody answers, and Complaint with the sidecar's own words where it refuses.
    """
    admin = arguments.admin or sound_settings(arguments).server.admin
    body = None if told is None else told.encode()
    try:
        said = {} if body is None else {"content-type": _type(told), "x-understudy-by": _hand()}
        asked = urllib.request.Request(f"http://{admin}{path}", body, said)
        # past any proxy of the environment's: an admin port is on this host, or in this network
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=WAIT_S) as answer:
            return answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as refused:
        raise Complaint(_reason(refused.read().decode("utf-8", "replace")) or str(refused)) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise Silent(f"no sidecar answers on {admin}: {reason}") from None


def ask_json(arguments: argparse.Namespace, path: str) -> Any:
    """The same, of a page that is JSON."""
    text = ask(arguments, path)
    try:
        return json.loads(text)
    except ValueError:
        raise Silent(f"whatever answers on {arguments.admin or 'the admin port'} is no sidecar") from None


def print_told(told: dict[str, Any], tables: Callable[[dict[str, Any]], None], *, as_json: bool) -> None:
    """Print what a sidecar told: as JSON, or as `tables` print it."""
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        tables(told)


def _hand() -> str:
    """Who says it: the sidecar keeps that with what was said."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    return name.encode("ascii", "replace").decode()


def _type(told: str | None) -> str:
    return "application/json" if (told or "").startswith("{") else "text/plain; charset=utf-8"


def _reason(text: str) -> str:
    """A refusal's sentence, out of its JSON where it is some."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text.strip()
