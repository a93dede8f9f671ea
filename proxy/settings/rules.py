"""Say what the types can't: which values don't go together, and which will surprise somebody.

A rule looks at values that are already of the right type and yields faults or warnings. It names the keys it reads;
where one of them was broken, the rule keeps quiet, for its fault would be the first one's echo.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args
from urllib.parse import urlsplit

from understudy.proxy.settings.addresses import (
    HOST,
    addresses,
    clash,
    is_ip,
    is_loopback,
    numeric,
    parse_address,
    path_fault,
    unix_path,
)
from understudy.proxy.settings.alert_rules import alert_faults
from understudy.proxy.settings.arm_rules import arm_faults, arm_warnings
from understudy.proxy.settings.mirror_rules import mirror_faults, mirror_warnings
from understudy.proxy.settings.outcomes import providers_of, row_faults, sets_key
from understudy.proxy.settings.recovery_rules import recovery_faults
from understudy.proxy.settings.scalars import did_you_mean
from understudy.proxy.settings.settings import (
    Endpoint,
    LocalTier,
    Match,
    Outcome,
    Route,
    Secret,
    Settings,
    Speech,
    Tier,
    UpstreamTier,
    endpoints_of,
)
from understudy.proxy.settings.space_rules import space_faults, space_warnings
from understudy.proxy.settings.spend_rules import price_faults, spend_faults, spend_warnings
from understudy.proxy.settings.spots import Fault, Place, named
from understudy.proxy.settings.stream_rules import stream_faults, stream_warnings
from understudy.proxy.settings.trace import Traces

ENDPOINTS_MAX = 256
PLAIN = "plain"
SPACED_KINDS = ("embed", "retrieve")
TRANSLATED = (*get_args(Speech), "azure-openai-chat", "openai-responses")
# Ollama asks nobody for a key.
KEYLESS = "ollama-chat"

# What belongs to one connection, or is ours to write: a tier that set these would break the framing.
OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Two spaces of one dimension compare without an error and mean nothing: an answer of ours would be a wrong one.
NO_SPACE = "which vector space does this tier answer in? Say so here, or as the route's space"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e]*")
_SECOND_LEVEL = re.compile(
    r"(rediss?://([^@/\s]*@)?|memcached://)(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[0-9]{0,3})?"
)
_PATH = re.compile(r"/[\x21\x22\x24-\x3e\x40-\x7e]*")


def faults_of(settings: Settings, dialects: Mapping[str, str], top: Place) -> Iterator[Fault]:
    """What doesn't go together. `dialects` says which kind of call each dialect speaks."""
    yield from _listen_faults(settings, top.at("server"))
    yield from _shared_cache_faults(settings, top.at("server"))
    yield from alert_faults(settings.server.alerts, top.at("server").at("alerts"))
    yield from recovery_faults(settings.server.recovery, top.at("server").at("recovery"))
    yield from _trace_faults(settings, top.at("server"))
    yield from price_faults(settings, top.at("prices"))
    yield from _repeated_names(settings.routes, top)
    yield from _repeated_claims(settings.routes, top)
    yield from _outcome_faults(settings.outcomes, None, top.at("outcomes"))
    ports = _ports(settings) if top.grown.whole("server.listen") else set[int]()
    for n, route in enumerate(settings.routes):
        at = top.at(f"routes[{n}]")
        yield from _dialect_faults(route, dialects, at)
        for key, match in claims_of(route):
            yield from _match_faults(match, ports, at.at(key))
        yield from _policy_faults(route, at)
        yield from _cache_faults(route, at)
        yield from mirror_faults(settings, route, at)
        yield from _tier_order_faults(route, dialects, at)
        yield from _space_faults(settings, route, dialects, at)
        yield from space_faults(route, dialects, at)
        yield from arm_faults(settings, route, dialects, at)
        yield from stream_faults(route, dialects, at)
        yield from spend_faults(settings, route, dialects, at)
        missing = settings.inactive.get(route.name, {})
        upstreams = [tier for _, tier in route.every_tier if isinstance(tier, UpstreamTier)]
        asked = [provider for tier in upstreams for provider in providers_of(tier, route.dialect)]
        yield from _outcome_faults(route.outcomes, asked, at.at("outcomes"))
        for key, tier in route.every_tier:
            yield from _gate_faults(tier, at.at(key))
            if isinstance(tier, UpstreamTier):
                asked = providers_of(tier, route.dialect)
                yield from _outcome_faults(tier.outcomes, asked, at.at(key).at("outcomes"))
                yield from _upstream_faults(settings, tier, at.at(key), there=tier.name not in missing)
                yield from _speech_faults(route, tier, at.at(key))


def warnings_of(settings: Settings, dialects: Mapping[str, str], top: Place) -> Iterator[Fault]:
    """What is allowed, and may surprise."""
    for key, address in _named_addresses(settings):
        host, _ = parse_address(address)
        if host and not is_loopback(host):
            yield from top.at("server").fault("listens beyond this host: anybody who reaches it may use it", key)
    for n, route in enumerate(settings.routes):
        at = top.at(f"routes[{n}]")
        if route.tiers and not settings.active(route):
            missing = "; ".join(settings.inactive[route.name].values())
            yield from at.fault(f"no tier is there ({missing}), so this route isn't either", "tiers")
        yield from arm_warnings(settings, route, at)
        yield from space_warnings(settings, route, dialects, at)
        if dialects.get(route.dialect) == "generate":
            yield from stream_warnings(route, at)
        yield from mirror_warnings(route, at)
        yield from spend_warnings(settings, route, dialects, at)
        if route.cache.enabled and dialects.get(route.dialect) == "pass":
            yield from at.fault("nothing is kept of what this dialect speaks", "cache.enabled", reads=["dialect"])
        for key, tier in route.every_tier:
            if isinstance(tier, UpstreamTier):
                yield from _upstream_warnings(tier, at.at(key))
                if tier.speaks not in (None, KEYLESS) and not sets_key(tier):
                    yield from at.at(key).fault(
                        "no key is set in headers, and the caller's is not sent there", "speaks"
                    )
        for m, _ in _unspaced(settings, route, dialects, active=False):
            yield from at.fault(NO_SPACE, f"tiers[{m}].space", reads=[f"tiers[{m}].kind", "space", "dialect"])


# --- addresses ---------------------------------------------------------------------------------------------------


def _named_addresses(settings: Settings) -> list[tuple[str, str]]:
    listen = settings.server.listen
    named = [("listen", listen)] if isinstance(listen, str) else [(f"listen[{n}]", at) for n, at in enumerate(listen)]
    return [*named, ("admin", settings.server.admin)]


def _listen_faults(settings: Settings, at: Place) -> Iterator[Fault]:
    taken: dict[tuple[str, int], str] = {}
    for key, address in _named_addresses(settings):
        host, port = parse_address(address)
        if address.startswith("unix:"):
            yield from _unix_faults(settings, key, address, at)
        elif not host:
            hint = "; for every interface write 0.0.0.0:port or [::]:port" if address[:1] in (":", "*") else ""
            yield from at.fault(f"expected host:port or [v6]:port{hint}", key)
        elif port and (other := clash(numeric(host), port, taken)):
            yield from at.fault(f"the same address as {other}", key, reads=[other])
        else:
            taken[numeric(host), port] = key


def _unix_faults(settings: Settings, key: str, address: str, at: Place) -> Iterator[Fault]:
    first = "listen" if isinstance(settings.server.listen, str) else "listen[0]"
    if why := path_fault(unix_path(address)):
        yield from at.fault(f"expected unix:/path; {why}", key)
    elif key == "admin":
        yield from at.fault("the admin port can't be a Unix socket", key)
    elif key == first:
        yield from at.fault("the first address must be host:port: it is what applications and Envoy are told", key)
    elif settings.server.workers != 1 or settings.server.reuse_port:
        why = "a Unix socket can't be shared: it needs workers: 1, and no reuse_port"
        yield from at.fault(why, key, reads=["workers", "reuse_port"])
    elif addresses(settings).count(address) > 1 and key != f"listen[{addresses(settings).index(address)}]":
        yield from at.fault("this socket is listed twice", key)


def _trace_faults(settings: Settings, at: Place) -> Iterator[Fault]:
    traces = settings.server.traces
    if not isinstance(traces, Traces):
        return
    if why := _url_fault(traces.to):
        yield from at.fault(why, "traces.to")
    yield from _header_faults(traces.headers, at.at("traces"))


def _ports(settings: Settings) -> set[int]:
    """The ports listened on; none where one can't be known."""
    ports = [parse_address(address)[1] for address in addresses(settings) if not unix_path(address)]
    return set(ports) if all(ports) else set()


# --- routes ------------------------------------------------------------------------------------------------------


def claims_of(route: Route) -> list[tuple[str, Match]]:
    """Each claim of a route and the key it stands at."""
    if isinstance(route.match, Match):
        return [("match", route.match)]
    return [(f"match[{n}]", match) for n, match in enumerate(route.match)]


def _repeated_names(routes: tuple[Route, ...], top: Place) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for n, route in enumerate(routes):
        if first.setdefault(route.name, n) != n:
            other = top.place(f"routes[{first[route.name]}].name")
            yield from top.fault(f"another route has this name, at {other}", f"routes[{n}].name")
        yield from _repeated_tiers(route, top.at(f"routes[{n}]"))


def _repeated_tiers(route: Route, at: Place) -> Iterator[Fault]:
    first: dict[str, str] = {}
    for key, tier in route.every_tier:
        if first.setdefault(tier.name, key) != key:
            # A tier of which nobody says what kind it is may have its name from our guess.
            read = [f"{each}.kind" for each in (key, first[tier.name])]
            yield from at.fault(f"{first[tier.name]} has this name already", f"{key}.name", reads=read)


def _repeated_claims(routes: tuple[Route, ...], top: Place) -> Iterator[Fault]:
    first: dict[tuple[str | int | None, ...], str] = {}
    for n, route in enumerate(routes):
        for key, match in claims_of(route):
            prefix = None if match.prefix is None else match.prefix.rstrip("/")
            claim = ((match.host or "").lower() or None, match.port, prefix, match.path)
            path = f"routes[{n}].{key}"
            if first.setdefault(claim, path) != path:
                read = [
                    f"{each}.{part}" for each in (path, first[claim]) for part in ("host", "port", "prefix", "path")
                ]
                yield from top.fault(f"the same claim as at {top.place(first[claim])}", path, reads=read)


def _match_faults(match: Match, ports: set[int], at: Place) -> Iterator[Fault]:
    if (match.prefix is None) == (match.path is None):
        yield from at.fault("needs either prefix or path", reads=["prefix", "path"])
    for key, path in (("prefix", match.prefix), ("path", match.path)):
        if path is not None and not _PATH.fullmatch(path):
            yield from at.fault(_path_hint(path), key)
    if match.strip and match.prefix is None:
        yield from at.fault("only a prefix can be stripped", "strip", reads=["prefix"])
    if match.host is not None and not (HOST.fullmatch(match.host) or parse_address(f"{match.host}:1")[0]):
        yield from at.fault("expected a host name, without scheme, port or *", "host")
    if match.port is not None and ports and match.port not in ports:
        yield from at.fault("server.listen has no such port", "port")


def _path_hint(path: str) -> str:
    if not path.startswith("/"):
        return 'must start with "/"'
    return "must be a path as it is sent: no query, no spaces, other letters percent-encoded"


def _dialect_faults(route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    if route.dialect not in dialects:
        hint = did_you_mean(route.dialect, dialects) or f"; known here: {', '.join(dialects)}"
        yield from at.fault(f'unknown dialect "{at.written("dialect")}"{hint}', "dialect")


def _policy_faults(route: Route, at: Place) -> Iterator[Fault]:
    deadline = route.deadline
    if deadline.reserve_s >= deadline.total_s:
        keys = "deadline.reserve_s", "deadline.total_s"
        total_s = at.written("deadline.total_s", deadline.total_s)
        yield from at.fault(f"reserve_s must be less than total_s ({total_s})", *keys)
    yield from _breaker_faults(route, at)
    yield from _limit_faults(route, at)
    for key, tier in route.every_tier:
        if tier.limit != route.limit:
            yield from _limit_faults(tier, at.at(key))
        # What a tier has from its route was judged there.
        if isinstance(tier, UpstreamTier) and tier.breaker != route.breaker:
            yield from _breaker_faults(tier, at.at(key))


def _cache_faults(route: Route, at: Place) -> Iterator[Fault]:
    cache = route.cache
    if not cache.enabled:
        return
    if cache.entry_bytes_max > cache.bytes_max:
        keys = "cache.entry_bytes_max", "cache.bytes_max"
        bytes_max = at.written("cache.bytes_max", cache.bytes_max)
        yield from at.fault(f"entry_bytes_max must be at most bytes_max ({bytes_max})", *keys)


def _shared_cache_faults(settings: Settings, at: Place) -> Iterator[Fault]:
    url = settings.server.cache.url
    if url is not None and not _SECOND_LEVEL.fullmatch(url.reveal()):
        # what it is stays unsaid: there may be a password in it
        yield from at.fault("expected redis://[:password@]host[:port][/db] or memcached://host[:port]", "cache.url")


def _breaker_faults(owner: Route | UpstreamTier, at: Place) -> Iterator[Fault]:
    breaker = owner.breaker
    if breaker and breaker.open_s > breaker.open_s_max:
        keys = "breaker.open_s", "breaker.open_s_max"
        open_s_max = at.written("breaker.open_s_max", breaker.open_s_max)
        yield from at.fault(f"open_s must be at most open_s_max ({open_s_max})", *keys)


def _limit_faults(owner: Route | Tier, at: Place) -> Iterator[Fault]:
    limit = owner.limit
    if limit and limit.concurrent_min > limit.concurrent_max:
        keys = "limit.concurrent_min", "limit.concurrent_max"
        concurrent_max = at.written("limit.concurrent_max", limit.concurrent_max)
        yield from at.fault(f"concurrent_min must be at most concurrent_max ({concurrent_max})", *keys)


# --- tiers -------------------------------------------------------------------------------------------------------


def _tier_order_faults(route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    for m, tier in enumerate(route.tiers):
        if not isinstance(tier, LocalTier):
            continue
        if m < len(route.tiers) - 1:
            why = "a local tier always answers, so it must be the last"
            yield from at.fault(why, f"tiers[{m}]", reads=[f"tiers[{m}].kind"])
        if dialects.get(route.dialect) == "pass":
            why = f"nothing can be answered locally in dialect {PLAIN}, whose calls nobody understands"
            yield from at.fault(why, f"tiers[{m}]", reads=[f"tiers[{m}].kind", "dialect"])


def _space_faults(settings: Settings, route: Route, dialects: Mapping[str, str], at: Place) -> Iterator[Fault]:
    for m, _ in _unspaced(settings, route, dialects, active=True):
        yield from at.fault(NO_SPACE, f"tiers[{m}].space", reads=[f"tiers[{m}].kind", "space", "dialect"])


def _unspaced(
    settings: Settings, route: Route, dialects: Mapping[str, str], *, active: bool
) -> Iterator[tuple[int, Tier]]:
    """The upstream tiers beside a local one of which nobody says what space they are in."""
    spaced = dialects.get(route.dialect) in SPACED_KINDS
    if not spaced or route.space or not any(isinstance(tier, LocalTier) for tier in route.tiers):
        return
    missing = settings.inactive.get(route.name, {})
    for m, tier in enumerate(route.tiers):
        if isinstance(tier, UpstreamTier) and not tier.space and (tier.name not in missing) == active:
            yield m, tier


def _outcome_faults(rows: Sequence[Outcome], asked: Sequence[str] | None, at: Place) -> Iterator[Fault]:
    # a row that can't be read says nothing, and neither do the rows beside it of whether they are ever asked
    if at.grown.whole(at.path):
        for key, why in row_faults(rows, None if asked is None else frozenset(asked)):
            yield from at.fault(why, key)


_UNSPOKEN = UpstreamTier(name="unspoken")


def _speech_faults(route: Route, tier: UpstreamTier, at: Place) -> Iterator[Fault]:
    if tier.speaks is None:
        for key in ("models", "answer_tokens_max"):
            # what is written out in full says what it would say unwritten
            if at.has(key) and getattr(tier, key) != getattr(_UNSPOKEN, key):
                yield from at.fault("means nothing without speaks", key)
    elif tier.speaks != route.dialect and route.dialect not in TRANSLATED:
        # the route's own word is not repeated: it may have come from a variable
        why = f"nothing is translated from the route's dialect; what is: {', '.join(TRANSLATED)}"
        yield from at.fault(why, "speaks")


def _gate_faults(tier: Tier, at: Place) -> Iterator[Fault]:
    for k, _ in enumerate(tier.when_env):
        if "${" in at.written(f"when_env[{k}]"):
            yield from at.fault("takes the name of a variable as it is, without ${}", f"when_env[{k}]")


def _upstream_faults(settings: Settings, tier: UpstreamTier, at: Place, *, there: bool) -> Iterator[Fault]:
    yield from _header_faults(tier.headers, at)
    if not tier.endpoints:
        if not at.has("url") or (there and not tier.url):
            yield from at.fault("needs a url, or endpoints", "url", reads=["endpoints", "kind"])
        # a variable that is set to nothing gives an empty url, and takes the tier away: nothing is wrong with that
        elif there or tier.url:
            yield from _place_faults(settings, tier, at)
        return
    for key in ("url", "socket"):
        if at.has(key):
            yield from at.fault("belongs to a tier without endpoints: each of these has its own", key)
    if len(tier.endpoints) > ENDPOINTS_MAX:
        yield from at.fault(f"more than {ENDPOINTS_MAX} endpoints", "endpoints")
    for k, endpoint in enumerate(tier.endpoints):
        yield from _header_faults(endpoint.headers, at.at(f"endpoints[{k}]"))
        if there or endpoint.url:
            yield from _place_faults(settings, endpoint, at.at(f"endpoints[{k}]"))
    yield from _repeated_endpoints(tier, at)


def _repeated_endpoints(tier: UpstreamTier, at: Place) -> Iterator[Fault]:
    names: dict[str, int] = {}
    places: dict[object, int] = {}
    for k, endpoint in enumerate(endpoints_of(tier)):
        here, keys = f"endpoints[{k}]", ("url", "socket", "name")
        if (first := places.setdefault(endpoint.place, k)) != k:
            why = f"the same as endpoints[{first}]: for more of the calls give that one more weight"
        elif (first := names.setdefault(endpoint.name, k)) != k:
            why = f"endpoints[{first}] has this name already"
            why += "" if tier.endpoints[k].name else ", which comes from its url; give one of them a name"
        else:
            continue
        reads = [f"endpoints[{each}].{key}" for each in (k, first) for key in keys]
        yield from at.fault(why, f"{here}.name" if tier.endpoints[k].name else f"{here}.url", reads=reads)


def _place_faults(settings: Settings, owner: UpstreamTier | Endpoint, at: Place) -> Iterator[Fault]:
    if why := _url_fault(owner.url):
        yield from at.fault(why, "url")
    if owner.socket is not None and (why := path_fault(owner.socket)):
        yield from at.fault(why, "socket")
    yield from _circle_faults(settings, owner, at)


def _header_faults(headers: Mapping[str, Secret], at: Place) -> Iterator[Fault]:
    seen: set[str] = set()
    for name, value in headers.items():
        here = at.at("headers").at(named(name))
        if not _TOKEN.fullmatch(name):
            yield from here.fault("not a legal header name")
        elif name.lower() in OWN_HEADERS:
            yield from here.fault("belongs to the connection, and is not for a tier to set")
        elif name.lower() in seen:
            yield from here.fault("this header is set twice")
        seen.add(name.lower())
        if not _PRINTABLE.fullmatch(value.reveal()):
            broken = set(value.reveal()) & set("\r\n")
            yield from here.fault("has a line break in it" if broken else "must be printable ASCII")


def _circle_faults(settings: Settings, owner: UpstreamTier | Endpoint, at: Place) -> Iterator[Fault]:
    """An upstream that is the sidecar itself: what `understudy env` prints is the application's, not ours."""
    if owner.socket is not None:
        if f"unix:{owner.socket}" in addresses(settings):
            yield from at.fault("this is the sidecar's own address: calls would go round in circles", "socket")
        return
    if _url_fault(owner.url):
        return
    url = urlsplit(owner.url)
    own = {(numeric(host), port): key for key, (host, port) in _listened(settings)}
    if url.port and clash(numeric(url.hostname or ""), url.port, own):
        yield from at.fault("this is the sidecar's own address: calls would go round in circles", "url")


def _listened(settings: Settings) -> list[tuple[str, tuple[str, int]]]:
    return [(key, parse_address(address)) for key, address in _named_addresses(settings)]


def _url_fault(url: str) -> str:
    """What is wrong with a base URL, without repeating it; '' when nothing is."""
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        return "expected http(s)://host[:port][/base], without spaces or other letters than ASCII's"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "expected http(s)://host[:port][/base], and its host or port can't be read"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "expected http(s)://host[:port][/base]"
    if "@" in parts.netloc:
        return "put credentials into headers, where they don't print"
    if "?" in url or "#" in url:
        return "a base URL has no query and no fragment"
    if port == 0 or not (HOST.fullmatch(parts.hostname) or is_ip(parts.hostname.partition("%")[0], 6)):
        return "expected http(s)://host[:port][/base], and its host or port can't be read"
    return ""


def _upstream_warnings(tier: UpstreamTier, at: Place) -> Iterator[Fault]:
    if not tier.tls.verify:
        yield from at.fault("certificates are not verified: anybody in between can read and answer", "tls.verify")
