"""Which requests go where, in Envoy's words: virtual hosts, and in each its routes from the most to the least exact.

Envoy takes the first route that fits, the sidecar the most exact one: an exact path before a prefix, a longer prefix
before a shorter, one that names the host before one that does not. Envoy also looks no further than the virtual host
whose name fits, so each named host holds the hostless claims too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from understudy.envoy.legs import Leg
from understudy.envoy.words import Json


@dataclass(frozen=True, slots=True)
class Claim:
    """One path or prefix of a leg, on one host or on all (""). A prefix has no slash at its end; "" is everything."""

    leg: Leg
    host: str
    exact: bool
    path: str
    strip: bool = False

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Sorts the more exact claim first."""
        return (not self.exact, -len(self.path), not self.host)


def claims_of(leg: Leg) -> list[Claim]:
    """All that a leg claims. A match with neither path nor prefix claims its whole host."""
    claims: list[Claim] = []
    for match in leg.matches:
        host = (match.host or "").lower()
        if match.path is not None:
            claims.append(Claim(leg, host, True, match.path))
        if match.prefix is not None or match.path is None:
            prefix = (match.prefix or "").rstrip("/")
            claims.append(Claim(leg, host, False, prefix, match.strip and bool(prefix)))
    return claims


def virtual_hosts(claims: Iterable[Claim], routes: Callable[[Claim], list[Json]], otherwise: list[Json]) -> list[Json]:
    """The virtual hosts for `claims`: one per host named and one for all others, each ending in `otherwise`."""
    ranked = sorted(claims, key=lambda claim: claim.rank)
    hosts = sorted({claim.host for claim in ranked if claim.host})
    return [
        {
            "name": host or "any",
            "domains": [host or "*"],
            "routes": [*(route for claim in ranked if claim.host in ("", host) for route in routes(claim)), *otherwise],
        }
        for host in [*hosts, ""]
    ]


def path_match(claim: Claim) -> Json:
    """What fits a claim; prefixes end where a segment ends."""
    if claim.exact:
        return {"path": claim.path}
    return {"path_separated_prefix": claim.path} if claim.path else {"prefix": "/"}


def rewritten(claim: Claim, base_path: str) -> list[tuple[Json, Json]]:
    """(what fits, how its path is rewritten) for an upstream below `base_path`, as the sidecar would ask it.

    A stripped prefix alone becomes `/`, so it needs a line of its own: Envoy would make `//` of one or the other.
    """
    if claim.strip:
        whole = {"prefix_rewrite": f"{base_path}/"}
        return [({"path": claim.path}, whole), ({"prefix": f"{claim.path}/"}, whole)]
    if base_path:
        return [(path_match(claim), {"prefix_rewrite": f"{base_path}{claim.path or '/'}"})]
    return [(path_match(claim), {})]
