"""Which requests go where, in Envoy's words: virtual hosts, and in each its routes, the most particular first.

Envoy takes the first route that fits, the sidecar the most particular one, in the order of `proxy/routes.py`: one that
names the host before one that does not, then one that names the port, then an exact path, then the longest prefix.
Envoy also looks no further than the virtual host whose name fits, so each named host holds the hostless claims too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from understudy.envoy.legs import Leg
from understudy.envoy.words import Json


@dataclass(frozen=True, slots=True)
class Claim:
    """One path or prefix of a leg, on one host or on all (""). A prefix has no slash at its end; "" is everything.

    `port` says that the sidecar's port was named; which one is no longer a question here.
    """

    leg: Leg
    host: str
    exact: bool
    path: str
    port: bool
    strip: bool = False

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """Sorts the more particular claim first."""
        return (not self.host, not self.port, not self.exact, -len(self.path))


def claims_of(leg: Leg) -> list[Claim]:
    """All that a leg claims."""
    claims: list[Claim] = []
    for match in leg.matches:
        host, port = (match.host or "").lower().rstrip("."), match.port is not None
        if match.path is not None:
            claims.append(Claim(leg, host, True, match.path, port))
        else:
            prefix = (match.prefix or "").rstrip("/")
            claims.append(Claim(leg, host, False, prefix, port, match.strip and bool(prefix)))
    return claims


def virtual_hosts(claims: Iterable[Claim], routes: Callable[[Claim], list[Json]], otherwise: list[Json]) -> list[Json]:
    """The virtual hosts for `claims`: one per host named and one for all others, each ending in `otherwise`."""
    ranked = sorted(claims, key=lambda claim: claim.rank)
    hosts = sorted({claim.host for claim in ranked if claim.host})
    return [
        {
            "name": host or "any",
            "domains": [host, f"{host}."] if host else ["*"],
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
