"""Find who claims a request: one look-up whose cost does not grow with the number of routes.

    (host, port)  >  host  >  port  >  anyone        the most particular place that claims the path decides,
    exact path    >  longest prefix                  and within it the most particular path

A prefix ends where a segment ends: `/v1` claims /v1 and /v1/x, never /v1x. The first line makes a host or a port of
one's own a house of one's own: what is claimed there is looked for there first, however short the prefix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from understudy.proxy.settings.settings import Match, Route

T = TypeVar("T")

_Spot = tuple[bytes | None, int | None]


class _Paths(Generic[T]):
    """The claims of one place: exact paths, and prefixes without the slash at their end."""

    __slots__ = ("exact", "prefixes", "segments_max")

    def __init__(self) -> None:
        self.exact: dict[bytes, T] = {}
        self.prefixes: dict[bytes, tuple[T, bool]] = {}
        self.segments_max = 0

    def add(self, match: Match, value: T) -> None:
        if match.path is not None:
            self.exact.setdefault(match.path.encode(), value)
            return
        prefix = (match.prefix or "").rstrip("/").encode()
        self.prefixes.setdefault(prefix, (value, match.strip))
        self.segments_max = max(self.segments_max, prefix.count(b"/"))

    def find(self, path: bytes) -> tuple[T, bytes] | None:
        value = self.exact.get(path)
        if value is not None:
            return value, path
        for end in self._ends(path):
            hit = self.prefixes.get(path[:end])
            if hit is not None:
                return hit[0], (path[end:] or b"/") if hit[1] else path
        return None

    def _ends(self, path: bytes) -> list[int]:
        """Where a prefix of `path` could end, the longest first."""
        ends = [0]
        end = 0
        # Deeper than the deepest prefix nothing can match: a path of a thousand slashes costs no more than another.
        for _ in range(self.segments_max):
            end = path.find(b"/", end + 1)
            if end < 0:
                ends.append(len(path))
                break
            ends.append(end)
        ends.reverse()
        return ends


class Table(Generic[T]):
    """Claims and what stands behind each. Where two claims are equal, the first is kept."""

    __slots__ = ("_has_hosts", "_places")

    def __init__(self, claims: Iterable[tuple[Match, T]]) -> None:
        self._places: dict[_Spot, _Paths[T]] = {}
        self._has_hosts = False
        for match, value in claims:
            host = bare_host(match.host.encode() + b":") if match.host else None
            self._has_hosts |= host is not None
            self._places.setdefault((host, match.port), _Paths()).add(match, value)

    def find(self, host: bytes | None, port: int, path: bytes) -> tuple[T, bytes] | None:
        """What claims `path` (without its query) at a Host header and a local port, and the path to go on with.

        The path comes back without the prefix where the claim says `strip`. A host's port is not looked at.
        """
        name = bare_host(host) if host and self._has_hosts else None
        for place in ((name, port), (name, None), (None, port), (None, None)) if name else ((None, port), (None, None)):
            paths = self._places.get(place)
            if paths is not None and (found := paths.find(path)) is not None:
                return found
        return None


class Routes(Table[Route]):
    """The table of the settings' own routes."""

    __slots__ = ()

    def __init__(self, routes: Iterable[Route]) -> None:
        super().__init__((match, route) for route in routes for match in route.claims)


def bare_host(host: bytes) -> bytes:
    """A Host header's name: lower case, without the port and the dot at its end."""
    name, colon, port = host.rpartition(b":")
    # A colon inside [v6] is no port's.
    if colon and not port.endswith(b"]"):
        host = name
    return host.lower().rstrip(b".")
