"""Whose hand an admin port obeys: one on this host, and no web page's."""

from __future__ import annotations

import ipaddress

from aiohttp import web


def from_this_host(request: web.Request) -> bool:
    """A scraper may be let in from elsewhere, but not a hand; and a browser names the page that speaks through it."""
    if "Origin" in request.headers:
        return False
    try:
        return request.remote is None or ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False
