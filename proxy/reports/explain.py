"""Say what would become of a request, and which line of which file made it so: `understudy explain`.

Written to be read at three in the morning: who is asked, in what order, what each layer would do, and where to change
it. Secrets are shown as `***`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

from msgspec import UNSET, Struct

from understudy.models.space import same_space
from understudy.policies.forcing import Forced
from understudy.policies.outcomes import FOLLOWS
from understudy.proxy.dialects import KINDS
from understudy.proxy.health.components import components_of
from understudy.proxy.orders import order_text
from understudy.proxy.routes import Table
from understudy.proxy.settings.addresses import speaks_tls, tls_of
from understudy.proxy.settings.outcomes import providers_of
from understudy.proxy.settings.reading import Reading
from understudy.proxy.settings.rules import addresses, claims_of, parse_address
from understudy.proxy.settings.settings import LocalTier, Match, Outcome, Route, Secret, Settings, Tier, UpstreamTier
from understudy.proxy.settings.spots import join, masked, named, shown
from understudy.proxy.settings.trace import Traces
from understudy.proxy.settings.types import MASK

Order = Sequence[tuple[str, str]]
"""The layers of a stack from outside in, and why each stands where it does."""

BUILT_IN = "built in"
SECRET_WORDS = frozenset({"APIKEY", "CREDENTIAL", "CREDENTIALS", "KEY", "PASSWORD", "SECRET", "TOKEN"})
OFF_UNLESS_WRITTEN = {"fault": "faults", "split": "split", "shadow": "shadow", "watch": "watch", "mirror": "mirror"}
"""Layers that are only there where the settings have this key."""
_TIER = "server.health.tier"
GOES_BY = {"observe": "objectives"}
"""Layers whose values stand under another key."""
OFF: tuple[tuple[str, object], ...] = (("enabled", False), ("mode", "off"))
"""What says of a layer that it does nothing."""
_STACKED = ("balance", "ramp", "retry", "budget", "hedge", "breaker", "quota", "limit", "deadline", "faults", "stream")
_APART = ("name", "provider", "outcomes", *_STACKED)


def explain_data(
    reading: Reading,
    method: str,
    path: str,
    host: str | None = None,
    port: int | None = None,
    *,
    route_order: Order | None = None,
    tier_order: Order | None = None,
    forced: Sequence[Forced] = (),
) -> dict[str, Any]:
    """What `explain` says, as plain values for JSON: request, route (None where nobody claims it), layers and tiers."""
    settings = reading.settings
    if settings is None:
        return {"faults": [str(fault) for fault in reading.faults]}
    bare_path = path.partition("?")[0]
    port = _first_port(settings) if port is None else port
    data: dict[str, Any] = {
        "request": {"method": method, "path": path, "host": host, "port": port},
        "digest": settings.digest,
        "route": None,
    }
    claims = ((match, (n, key, match)) for n, route in enumerate(settings.routes) for key, match in claims_of(route))
    # A command line may bring bytes that are no UTF-8; they are looked for, and shown, as they came.
    found = Table(claims).find(os.fsencode(host) if host else None, port, os.fsencode(bare_path))
    if found is None:
        return {**data, "claims": _claims(settings, _Described(reading))}
    (n, key, match), forwarded = found
    route_order, tier_order = route_order or _orders()[0], tier_order or _orders()[1]
    at = f"routes[{n}]"
    route = settings.routes[n]
    described = _Described(reading, forced)

    def tiers_data(tiers: Sequence[Tier], at: str) -> list[dict[str, Any]]:
        each = enumerate(tiers)
        return [_tier_data(settings, route, tier, f"{at}.tiers[{m}]", tier_order, described) for m, tier in each]

    data["tls"] = _tls_data(settings, port, described)
    data["route"] = {
        "name": route.name,
        "from": described.place(at),
        "because": _because(match),
        "claim_from": described.place(f"{at}.{key}"),
        "forwarded_path": os.fsdecode(forwarded),
        "dialect": described.value(f"{at}.dialect", route.dialect),
        "space": _space(settings, route, at, described),
        "body_bytes_max": described.value(f"{at}.body_bytes_max", route.body_bytes_max),
        "layers": [
            {"name": name, "why": why, "values": _layer(settings, route, name, at, described)}
            for name, why in route_order
            if (_traces(settings) is not None if name == "trace" else _is_there(route, name, route))
        ],
        "health": _health(settings, route, at, described),
        "recovery": _recovery(settings, route, described),
        "outcomes": _rows(route.outcomes, f"{at}.outcomes", described),
        "tiers": tiers_data(route.tiers, at),
        "arms": {name: tiers_data(arm.tiers, f"{at}.arms.{named(name)}") for name, arm in route.arms.items()},
    }
    return data


def explain(
    reading: Reading,
    method: str,
    path: str,
    host: str | None = None,
    port: int | None = None,
    *,
    route_order: Order | None = None,
    tier_order: Order | None = None,
    forced: Sequence[Forced] = (),
) -> str:
    """Which route a request takes and why, and its stack from outside in, each value with the line it came from.

    `port` is the local port it comes in on (the first of `server.listen` where none is given). The orders are those of
    `proxy.stack` unless others are given. `forced` is what operators have said of breakers: it goes before what is
    written.
    """
    orders: dict[str, Any] = {"route_order": route_order, "tier_order": tier_order, "forced": forced}
    data = explain_data(reading, method, path, host, port, **orders)
    return "\n".join(_lines(data)) + "\n"


# --- gathering ---------------------------------------------------------------------------------------------------


class _Described:
    """Looks values up: what they are as people may see them, and where they came from."""

    def __init__(self, reading: Reading, forced: Sequence[Forced] = ()) -> None:
        self._forced = forced
        self._origins = reading.origins
        self._enabled = reading.settings is not None and reading.settings.server.faults

    def place(self, path: str) -> str:
        spot = self._origins.get(path)
        if spot is None:
            return BUILT_IN
        return f"{spot.place}, {' and '.join(spot.variables)}" if spot.variables else spot.place

    def value(self, path: str, value: object) -> dict[str, Any]:
        spot = self._origins.get(path)
        hides = isinstance(value, str) and spot is not None and any(map(_names_a_secret, spot.variables))
        return {"value": MASK if hides else _plain(value), "from": self.place(path)}

    def policy(self, owner: Struct, name: str, at: str) -> dict[str, Any]:
        """The values of the policy `name` of a route or tier; nothing where it has none."""
        name = OFF_UNLESS_WRITTEN.get(name) or GOES_BY.get(name, name)
        policy = getattr(owner, name, None)
        if isinstance(policy, list):
            return self._planned(cast("list[Struct]", policy), f"{at}.{name}")
        return self.fields(policy, f"{at}.{name}") if isinstance(policy, Struct) else {}

    def by_hand(self, route: Route, tier: Tier, layer: str) -> dict[str, Any]:
        """What operators have said of a tier's breakers."""
        said = [one for one in self._forced if layer == "breaker" and one[:2] == (route.name, tier.name)]
        return {
            f"by hand ({one.endpoint})": {"value": f"{one.mode} {order_text(one)}".rstrip(), "from": "the state folder"}
            for one in said
        }

    def _planned(self, faults: list[Struct], at: str) -> dict[str, Any]:
        """What is planned to break: whether it does, and of each fault what was written."""
        values = {"server.faults": self.value("server.faults", self._enabled)}
        for n, each in enumerate(faults):
            here = f"{at}[{n}]"
            unsaid = [key for key in each.__struct_fields__ if join(here, key) not in self._origins and key != "share"]
            values |= {f"[{n}].{key}": value for key, value in self.fields(each, here, unsaid).items()}
        return values

    def fields(self, owner: Struct, at: str, skipped: Sequence[str] = ()) -> dict[str, Any]:
        """Every value in `owner`, the nested ones under `outer.inner`."""
        values: dict[str, Any] = {}
        for name in owner.__struct_fields__:
            value, path = cast("object", getattr(owner, name)), join(at, name)
            # an endpoint's own, where it has none
            if name in skipped or value is UNSET or (name == "prefill" and not value):
                continue
            if isinstance(value, Struct):
                values |= {join(name, inner): each for inner, each in self.fields(value, path).items()}
            elif structs := _structs(value):
                for n, each in enumerate(structs):
                    inner = self.fields(each, f"{path}[{n}]")
                    values |= {f"{name}[{n}].{key}": told for key, told in inner.items()}
            elif isinstance(value, dict):
                for inner, each in cast("dict[str, object]", value).items():
                    values[join(name, named(inner))] = self.value(join(path, named(inner)), each)
            else:
                values[name] = self.value(path, value)
        return values


def _names_a_secret(variable: str) -> bool:
    """Whether an environment variable is called as those are that hold secrets: some gateways want one in the URL."""
    return not SECRET_WORDS.isdisjoint(variable.upper().split("_"))


def _structs(value: object) -> list[Struct]:
    """The structs in a list of them; none in anything else."""
    return [each for each in cast("list[object]", value) if isinstance(each, Struct)] if isinstance(value, list) else []


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return masked(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("Sequence[object]", value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _traces(settings: Settings) -> Traces | None:
    rules = settings.server.traces
    return rules if isinstance(rules, Traces) else None


def _layer(settings: Settings, route: Route, name: str, at: str, described: _Described) -> dict[str, Any]:
    """The values of a route's layer; where traces go is the same for all of them."""
    traces = _traces(settings) if name == "trace" else None
    return described.fields(traces, "server.traces") if traces is not None else described.policy(route, name, at)


def _health(settings: Settings, route: Route, at: str, described: _Described) -> dict[str, Any]:
    """What a route depends on, and what its service tier goes by."""
    own = route.service_tier
    rules, path = (own, f"{at}.service_tier") if isinstance(own, Struct) else (settings.server.health.tier, _TIER)
    used = [one.id for one in components_of(settings).values() if route.name in one.routes]
    values = {"depends_on": described.value(f"{at}.tiers", used), **described.fields(rules, path)}
    return {
        "name": "health",
        "why": "what is unhealthy of this is passed over, and makes the service tier",
        "values": values,
    }


def _recovery(settings: Settings, route: Route, described: _Described) -> dict[str, Any]:
    """What is tried for each kind of component that a route depends on."""
    recovery, at = settings.server.recovery, "server.recovery"
    roles = dict.fromkeys(one.role for one in components_of(settings).values() if route.name in one.routes)
    ladders = {
        f"ladders.{role}": described.value(f"{at}.ladders.{role}", list(recovery.ladder_of(role))) for role in roles
    }
    values = {"enabled": described.value(f"{at}.enabled", recovery.enabled), **ladders}
    return {"name": "recovery", "why": "what is tried for what is unhealthy, each verified", "values": values}


def _tls_data(settings: Settings, port: int, described: _Described) -> dict[str, Any]:
    """`server.tls` where it is spoken on this port; nothing elsewhere."""
    tls = tls_of(settings)
    spoken = [address for address in addresses(settings) if speaks_tls(settings, address)]
    if tls is None or port not in [parse_address(address)[1] for address in spoken]:
        return {}
    return described.fields(tls, "server.tls", ("listen",))


def _tier_data(
    settings: Settings, route: Route, tier: Tier, at: str, order: Order, described: _Described
) -> dict[str, Any]:
    local = isinstance(tier, LocalTier)
    return {
        "name": tier.name,
        "kind": "local" if local else "upstream",
        "from": described.place(at),
        "inactive": settings.inactive.get(route.name, {}).get(tier.name),
        "what": dict(order).get("tier", ""),
        "values": described.fields(tier, at, (*_unsaid(tier), *_APART))
        | _provider(route, tier, at, described)
        | _abroad(settings, route, tier, described),
        "outcomes": [] if isinstance(tier, LocalTier) else _rows(tier.outcomes, f"{at}.outcomes", described),
        "layers": [
            {"name": name, "why": why, "values": values}
            for name, why in order
            if name != "tier"
            and _is_there(tier, name, route)
            and ((values := described.policy(tier, name, at) | described.by_hand(route, tier, name)) or not local)
        ],
    }


def _is_there(owner: Route | Tier, layer: str, route: Route) -> bool:
    if layer == "last_words":
        return isinstance(owner, Route) and owner.last_words.asked_for
    if layer == "spend":
        return isinstance(owner, Route) and bool(owner.spend.budgets)
    if layer == "balance":
        return isinstance(owner, UpstreamTier) and len(owner.endpoints) > 1
    if layer == "stream":
        return KINDS.get(route.dialect) == "generate"
    return layer not in OFF_UNLESS_WRITTEN or bool(getattr(owner, OFF_UNLESS_WRITTEN[layer], None))


def _unsaid(tier: Tier) -> tuple[str, ...]:
    """The keys that mean nothing beside those that were written: a tier has a url, or endpoints; models are another
    provider's."""
    if not isinstance(tier, UpstreamTier):
        return ("endpoints",)
    places = ("url", "socket") if tier.endpoints else ("endpoints",)
    return places if tier.speaks is not None else (*places, "speaks", "models", "answer_tokens_max")


def _provider(route: Route, tier: Tier, at: str, described: _Described) -> dict[str, Any]:
    if isinstance(tier, LocalTier):
        return {}
    return {"provider": described.value(f"{at}.provider", list(providers_of(tier, route.dialect)))}


def _abroad(settings: Settings, route: Route, tier: Tier, described: _Described) -> dict[str, Any]:
    """How copies of another model's vectors are searched by handles: by vectors of their texts, or by a map."""
    space = settings.space_of(route)
    is_searched = isinstance(tier, LocalTier) and KINDS.get(route.dialect) == "retrieve"
    if not is_searched or not space or same_space(space, settings.local.model):
        return {}
    names = ("shadow_cpu_share", "bridge_cpu_share")
    return {f"local.{name}": described.value(f"local.{name}", getattr(settings.local, name)) for name in names}


def _rows(rows: Sequence[Outcome], at: str, described: _Described) -> list[dict[str, Any]]:
    """The rows that a route or a tier puts before the table."""
    return [{"row": row_text(row), "from": described.place(f"{at}[{n}]")} for n, row in enumerate(rows)]


def row_text(row: Outcome) -> str:
    """A row in one line: what it asks for, and what it makes of it."""
    asked = [
        f"{name} {_text(_plain(value))}"
        for name in row.__struct_fields__
        if name not in ("outcome", "follow", "reason") and (value := getattr(row, name)) is not None
    ]
    reason = f" ({row.reason})" if row.reason else ""
    return f"{' and '.join(asked)}: {row.outcome}, {row.follow or FOLLOWS[row.outcome]}{reason}"


def _orders() -> tuple[Order, Order]:
    # Only here: reading policies and explaining them with orders of one's own needs none of the data plane.
    from understudy.proxy.stack import ROUTE_ORDER, TIER_ORDER

    return ROUTE_ORDER, TIER_ORDER


def _first_port(settings: Settings) -> int:
    return next((parse_address(address)[1] for address in addresses(settings)), 0)


def _because(match: Match) -> str:
    claim = f"its path is {match.path}" if match.path is not None else f"its path is under {match.prefix}"
    if match.path is None:
        claim += ", and no route claims more of it"
    special = [f"host {match.host}"] if match.host else []
    special += [f"port {match.port}"] if match.port else []
    return f"{claim}, for {' and '.join(special)} alone" if special else claim


def _claims(settings: Settings, described: _Described) -> dict[str, Any]:
    """What there is to be claimed -> by which route, and where that is written."""
    return {
        _claim(match): described.value(f"routes[{n}].{key}", route.name)
        for n, route in enumerate(settings.routes)
        for key, match in claims_of(route)
    }


def _claim(match: Match) -> str:
    path = match.path if match.path is not None else f"{(match.prefix or '').rstrip('/')}/…"
    special = " ".join(filter(None, (match.host, f"port {match.port}" if match.port else "")))
    return shown(f"{path} ({special})" if special else path)


def _space(settings: Settings, route: Route, at: str, described: _Described) -> dict[str, Any]:
    space = settings.space_of(route)
    if route.space:
        return described.value(f"{at}.space", space)
    active = settings.active(route)
    if active and isinstance(active[0], LocalTier):
        return described.value("local.model", space)
    paths = [f"{at}.tiers[{m}].space" for m, tier in enumerate(route.tiers) if active and tier is active[0]]
    return described.value(paths[0] if paths else at, space or None)


# --- writing -----------------------------------------------------------------------------------------------------


def _lines(data: dict[str, Any]) -> Iterator[str]:
    if "faults" in data:
        yield "The policies can't be believed:"
        yield from data["faults"]
        return
    request, route = data["request"], data["route"]
    at = shown(request["host"] or "any host")
    yield f"{request['method']} {shown(request['path'])}  ({at}, port {request['port']})"
    if route is None:
        yield "  nobody claims this: it is answered 404; what is claimed:"
        yield from _table(data["claims"], 4)
        return
    yield f"  goes to route {route['name']} ({route['from']})"
    yield f"  because {route['because']} ({route['claim_from']})"
    if route["forwarded_path"] != request["path"].partition("?")[0]:
        yield f"  and goes on as {shown(route['forwarded_path'])}"
    if data["tls"]:
        yield "  in TLS:"
        yield from _table(data["tls"], 4)
    yield ""
    yield from _table({key: route[key] for key in ("dialect", "space", "body_bytes_max")}, 2)
    yield ""
    yield from _layers([*route["layers"], route["health"], route["recovery"]], 2)
    yield from _outcome_lines(route["outcomes"], "what its upstreams' errors mean, before the table's own rows", 2)
    for n, tier in enumerate(route["tiers"], 1):
        yield ""
        yield from _tier_lines(n, tier)
    for name, tiers in route["arms"].items():
        yield ""
        yield f"  arm {name}"
        for n, tier in enumerate(tiers, 1):
            yield from _tier_lines(n, tier)


def _tier_lines(n: int, tier: dict[str, Any]) -> Iterator[str]:
    if tier["inactive"]:
        yield f"  {n}. {tier['name']}, {tier['kind']} ({tier['from']}): NOT THERE, {tier['inactive']}"
        return
    yield f"  {n}. {tier['name']}, {tier['kind']} ({tier['from']})"
    yield from _layers(tier["layers"], 5)
    yield from _layers([{"name": "tier", "why": tier["what"], "values": tier["values"]}], 5)
    yield from _outcome_lines(tier["outcomes"], "what its errors mean, before the route's rows", 5)


def _outcome_lines(rows: list[dict[str, Any]], why: str, indent: int) -> Iterator[str]:
    if rows:
        yield f"{' ' * indent}outcomes: {why}"
        width = max(len(row["row"]) for row in rows)
        yield from (f"{' ' * (indent + 2)}{row['row']:<{width}}  {row['from']}" for row in rows)


def _layers(layers: list[dict[str, Any]], indent: int) -> Iterator[str]:
    for layer in layers:
        yield f"{' ' * indent}{layer['name']}: {layer['why']}"
        yield from _table(_told(layer["name"], layer["values"]), indent + 2)


def _told(layer: str, values: dict[str, Any]) -> dict[str, Any]:
    """Of a layer that does nothing, that it is off and what somebody has written of it; of any other, all."""
    switch = next((each for each, off in OFF if each in values and values[each]["value"] == off), None)
    is_idle = layer == "tokens" and not any(values[rate]["value"] for rate in values if rate.endswith("_per_s"))
    if switch is None and not is_idle:
        return values
    return {name: each for name, each in values.items() if name == switch or each["from"] != BUILT_IN}


def _table(values: dict[str, Any], indent: int) -> Iterator[str]:
    """Name, value and origin in columns."""
    cells = [(name, _text(each["value"]), each["from"]) for name, each in values.items()]
    names = max((len(name) for name, _, _ in cells), default=0)
    texts = max((len(text) for _, text, _ in cells), default=0)
    for name, text, origin in cells:
        yield f"{' ' * indent}{name:<{names}}  {text:<{texts}}  {origin}"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(each) for each in cast("list[object]", value)) or "-"
    if isinstance(value, str):
        return value or '""'
    return masked(value)
