"""Whose hand an admin port obeys: one on this host, and no web page's."""

from __future__ import annotations

import ipaddress

from aiohttp import web

BY = "x-understudy-by"
"""The header in which a hand says whose it is."""
BY_CHARACTERS_MAX = 64


def from_this_host(request: web.Request) -> bool:
    """A scraper may be let in from elsewhere, but not a hand; and a browser names the page that speaks through it."""
    if "Origin" in request.headers:
        return False
    try:
        return request.remote is None or ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False


def hand_of(request: web.Request) -> str:
    """Whose hand it says it is. Nobody proves it: who can say so has a shell on this host anyway."""
    said = request.headers.get(BY) or request.headers.get("User-Agent", "")
    name = "".join(letter for letter in said if letter.isprintable()).strip()[:BY_CHARACTERS_MAX]
    return f"{name or 'somebody'} from {request.remote or 'this host'}"
