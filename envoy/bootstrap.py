"""Render an Envoy bootstrap in which the real upstreams are priority 0 and the sidecar is priority 1.

    application
        |
    listener ---- route, with retries that move on to the next priority
        |
    route.NAME, an aggregate cluster
        |-- priority 0: first.NAME (outlier ejection) --> internal listener first.NAME --> real.NAME, the upstream
        |                                                   base path, stripped prefix,
        |                                                   host, headers, TLS, first byte
        `-- priority 1: sidecar, which gets the request exactly as the application sent it

Why an internal listener (an Envoy listener without a port) before each upstream: Envoy rewrites path, host and headers
once per request, before it chooses a host, so one route would show the sidecar the upstream's path and host, and the
upstream's key instead of the caller's own. (Filters that run per attempt do exist; they share one set of headers
between the attempts, so what the first has changed the second inherits.) Why an aggregate cluster: outlier ejection is
a cluster's, and the sidecar, the last resort, must never be ejected.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import yaml
from understudy.envoy.claims import Claim, Json, claims_of, path_match, rewritten, virtual_hosts
from understudy.envoy.legs import Address, Leg, Templates, Upstream, legs, read_address, sidecar_address
from understudy.proxy.http.heads import IDEMPOTENT
from understudy.proxy.settings import Breaker, Settings, Tls, UpstreamTier
from understudy.proxy.tiers.upstream import FAILURES

LISTEN = "127.0.0.1:10000"
ADMIN = "127.0.0.1:9901"
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian, Ubuntu and Alpine, and so Envoy's own images, keep the system's certificate authorities."""

RETRIES = 2
"""Priority 0, priority 1, and once round again should the sidecar itself be just restarting."""

SLACK_S = 1.0
"""How much longer than the sidecar promises Envoy waits: the sidecar's own timeout says more than Envoy's."""

READS = r".*/(embeddings|chat/completions|points(/(search|query|scroll|count|recommend|discover).*)?)"
"""Paths whose POST asks and changes nothing, so that a lost one may be sent again. What is not named here is only sent
to the sidecar when the upstream can't have acted on it."""

TYPES = "type.googleapis.com/envoy.extensions"
HTTP_MANAGER = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = f"{TYPES}.filters.http.router.v3.Router"
AGGREGATE = f"{TYPES}.clusters.aggregate.v3.ClusterConfig"
INTERNAL = f"{TYPES}.bootstrap.internal_listener.v3.InternalListener"
PREVIOUS_PRIORITIES = f"{TYPES}.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
TLS_CONTEXT = f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"
HTTP_OPTIONS = f"{TYPES}.upstreams.http.v3.HttpProtocolOptions"
HEAD_KIB_MAX = 8192
"""The most that Envoy lets a request's head be."""
NAMES_SHOWN_MAX = 40


def bootstrap(
    settings: Settings,
    *,
    listen: str = LISTEN,
    admin: str = ADMIN,
    sidecar: str | None = None,
    templates: Templates | None = None,
    ca_file: str = CA_FILE,
) -> Json:
    """The bootstrap as plain values. Raises ValueError for an address that is none.

    `templates` say where Envoy finds the secret headers it must set; a tier with others is left to the sidecar.
    """
    front, back = read_address(listen), _sidecar(settings, sidecar)
    found = legs(settings, templates or {}, back.port)
    asked = [(leg, leg.upstream) for leg in found if leg.upstream]
    bounds = _bounds(settings.server.limits.connections_max)
    clusters = [_sidecar_cluster(settings, back)]
    for leg, upstream in asked:
        clusters += _clusters(leg.route.name, upstream, bounds, ca_file)
    return {
        "node": {"id": "understudy", "cluster": "understudy"},
        "admin": {"address": _socket(read_address(admin))},
        "bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": INTERNAL}}],
        "static_resources": {
            "listeners": [
                _front_listener(settings, front, found),
                *(_inner_listener(settings, leg, upstream) for leg, upstream in asked),
            ],
            "clusters": clusters,
        },
    }


def render(
    settings: Settings,
    *,
    listen: str = LISTEN,
    admin: str = ADMIN,
    sidecar: str | None = None,
    templates: Templates | None = None,
    ca_file: str = CA_FILE,
) -> str:
    """The bootstrap as YAML, headed by what there is to know of it. Every string is quoted: YAML 1.1 takes a bare `n`
    for a boolean, and Envoy reads YAML 1.1. Raises ValueError."""
    values = bootstrap(
        settings,
        listen=listen,
        admin=admin,
        sidecar=sidecar,
        templates=templates,
        ca_file=ca_file,
    )
    back = _sidecar(settings, sidecar)
    found = legs(settings, templates or {}, back.port)
    lines = [f"# {_one_line(line)}".rstrip() for line in _heading(settings, back, found)]
    body = yaml.dump(values, Dumper=_Quoting, sort_keys=False, width=120, allow_unicode=False)
    return "\n".join(lines) + "\n\n" + body


def _sidecar(settings: Settings, sidecar: str | None) -> Address:
    return read_address(sidecar) if sidecar else sidecar_address(settings)


# --- the heading ---------------------------------------------------------------------------------------------------


def _heading(settings: Settings, back: Address, found: list[Leg]) -> list[str]:
    lines = [
        "An Envoy bootstrap, written by `understudy envoy bootstrap`. Don't edit it: render it again.",
        f"The policies it was made from: {settings.digest or 'unnamed'}. The sidecar: {back}.",
    ]
    sources = sorted({value for leg in found if leg.upstream for value in leg.upstream.headers.values()})
    if sources:
        lines += ["", "Envoy sets these headers itself and must find their variables in its environment:"]
        lines += [
            f"  {leg.route.name}: {name}: {value}"
            for leg in found
            if leg.upstream
            for name, value in leg.upstream.headers.items()
        ]
    lines += ["", "The routes:"]
    lines += [f"  {leg.route.name}: {note}" for leg in found for note in leg.notes]
    return lines


def _one_line(text: str) -> str:
    # what a policy file holds must not be able to end the comment it stands in
    return "".join(letter if letter.isprintable() else " " for letter in text)


class _Quoting(yaml.SafeDumper):
    """Every value that is a string in quotes; the keys are Envoy's own names and need none."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the same values in two places are written twice
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value.isidentifier():
                key.style = None
        return node

    def quoted(self, text: str) -> yaml.ScalarNode:
        return yaml.ScalarNode("tag:yaml.org,2002:str", text, style='"')


_Quoting.add_representer(str, _Quoting.quoted)


# --- listeners -----------------------------------------------------------------------------------------------------


def _front_listener(settings: Settings, front: Address, found: list[Leg]) -> Json:
    claims = [claim for leg in found for claim in claims_of(leg)]
    return {
        "name": "application",
        "address": _socket(front),
        # what is not held whole can't be sent a second time: Envoy's own 1 MiB would end retries there
        "per_connection_buffer_limit_bytes": _body_bytes_max(settings),
        "filter_chains": _http(settings, "application", virtual_hosts(claims, _front_routes, [_not_found(found)])),
    }


def _inner_listener(settings: Settings, leg: Leg, upstream: Upstream) -> Json:
    name = leg.route.name

    def routes(claim: Claim) -> list[Json]:
        return [_inner_route(name, upstream, match, path) for match, path in rewritten(claim, upstream.base_path)]

    # nothing but this route's requests comes here, so there is no otherwise
    hosts = virtual_hosts(claims_of(leg), routes, [])
    return {
        "name": f"first.{name}",
        "internal_listener": {},
        "filter_chains": _http(settings, f"first.{name}", hosts, local_reply_config=LOST_IS_502),
    }


LOST_IS_502: Json = {
    "mappers": [
        {
            # Envoy says 503 for a connection it never got and for one that broke after the request was sent; only the
            # first is safe to send elsewhere whatever it was
            "filter": {"response_flag_filter": {"flags": ["UC", "UR", "LR"]}},
            "status_code": 502,
        }
    ]
}


def _http(settings: Settings, name: str, hosts: list[Json], **more: object) -> list[Json]:
    limits = settings.server.limits
    manager: Json = {
        "@type": HTTP_MANAGER,
        "stat_prefix": name,
        "codec_type": "AUTO",
        # Envoy is to be seen as little as can be: no ids, no server name, no x-envoy-* of its own
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "max_request_headers_kb": min(-(-limits.head_bytes_max // 1024), HEAD_KIB_MAX),
        "common_http_protocol_options": {
            "idle_timeout": _duration(limits.idle_s),
            "max_headers_count": limits.headers_max,
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": ROUTER, "suppress_envoy_headers": True},
            }
        ],
        "route_config": {"name": name, "ignore_port_in_host_matching": True, "virtual_hosts": hosts},
        **more,
    }
    return [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]


# --- routes --------------------------------------------------------------------------------------------------------


def _front_routes(claim: Claim) -> list[Json]:
    """The routes for one claim: what may be sent again, and what only may when nobody can have acted on it."""
    leg, match = claim.leg, path_match(claim)
    if leg.upstream is None:
        return [_front_route(leg, match, "sidecar", _retry(leg, again=False))]
    cluster = f"route.{leg.route.name}"
    again, careful = _retry(leg, again=True), _retry(leg, again=False)
    methods = "|".join(sorted(method.decode() for method in IDEMPOTENT))
    routes = [_front_route(leg, {**match, "headers": [_header_fits(":method", methods)]}, cluster, again)]
    if leg.route.dialect != "plain":
        reads = [_header_fits(":method", "POST"), _header_fits(":path", rf"{READS}(\?.*)?")]
        routes.append(_front_route(leg, {**match, "headers": reads}, cluster, again))
    return [*routes, _front_route(leg, match, cluster, careful)]


def _header_fits(name: str, regex: str) -> Json:
    return {"name": name, "string_match": {"safe_regex": {"regex": regex}}}


def _front_route(leg: Leg, match: Json, cluster: str, retry: Json) -> Json:
    return {
        "match": match,
        "route": {
            "cluster": cluster,
            # a stream lasts as long as it lasts: what is bounded is each attempt's wait for a head, and each silence
            "timeout": "0s",
            "idle_timeout": _duration(_silence_s_max(leg)),
            "retry_policy": retry,
        },
    }


def _retry(leg: Leg, *, again: bool) -> Json:
    """When the next priority is asked. Not `again`: only where the upstream was not reached, or itself said 429 or 503.

    The sidecar judges the same statuses in the same way, in `proxy/tiers/upstream.py`.
    """
    policy: Json = {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": RETRIES,
        # up to the head of an answer: Envoy lets an attempt that has begun to answer go on
        "per_try_timeout": _duration(_head_s_max(leg)),
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.050s"},
    }
    if leg.upstream is None:
        return policy
    statuses = sorted(FAILURES) if again else [429, 503]
    policy["retry_on"] += ",reset,retriable-status-codes" if again else ",retriable-status-codes"
    policy["retriable_status_codes"] = statuses
    policy["retry_priority"] = {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {"@type": PREVIOUS_PRIORITIES, "update_frequency": 1},
    }
    return policy


def _head_s_max(leg: Leg) -> float:
    answer_s = leg.upstream.answer_s if leg.upstream else 0.0
    return max(answer_s, leg.route.deadline.total_s) + SLACK_S


def _silence_s_max(leg: Leg) -> float:
    # the sidecar may be streaming from any of its tiers, whose silences it bounds itself
    idle = [tier.idle_s for tier in leg.route.tiers if isinstance(tier, UpstreamTier)]
    return max(_head_s_max(leg) * (RETRIES + 1), *idle, 0.0) + SLACK_S


def _inner_route(name: str, upstream: Upstream, match: Json, path: Json) -> Json:
    return {
        "match": match,
        "route": {
            "cluster": f"real.{name}",
            "host_rewrite_literal": upstream.authority,
            **path,
            "timeout": "0s",
            "idle_timeout": _duration(max(upstream.idle_s, upstream.answer_s + SLACK_S)),
            "retry_policy": {"num_retries": 0, "per_try_timeout": _duration(upstream.answer_s)},
        },
        "request_headers_to_add": [_header(key, value) for key, value in upstream.headers.items()],
        "response_headers_to_add": [_header("x-understudy-tier", upstream.tier)],
    }


def _header(key: str, value: str) -> Json:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _not_found(found: list[Leg]) -> Json:
    names = [leg.route.name for leg in found if leg.matches]
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    message = f"no route claims this request; there are: {', '.join(names[:NAMES_SHOWN_MAX]) or 'none'}{more}"
    body = json.dumps({"error": {"message": message, "type": "not_found_error", "code": "no_route"}})
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": body}},
        "response_headers_to_add": [_header("content-type", "application/json")],
    }


# --- clusters ------------------------------------------------------------------------------------------------------


def _sidecar_cluster(settings: Settings, back: Address) -> Json:
    limits = settings.server.limits
    return {
        "name": "sidecar",
        **_found_by_name(back.host),
        "connect_timeout": "1s",
        **_bounds(limits.connections_max),
        # given up a little before the sidecar gives it up, so that no request meets a closing connection
        **_http1(idle_s=limits.idle_s * 0.8),
        "load_assignment": _endpoint("sidecar", _socket(back)),
    }


def _clusters(name: str, upstream: Upstream, bounds: Json, ca_file: str) -> list[Json]:
    first, real = f"first.{name}", f"real.{name}"
    together: Json = {
        "name": f"route.{name}",
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.aggregate",
            "typed_config": {"@type": AGGREGATE, "clusters": [first, "sidecar"]},
        },
        **_NO_PANIC,
        **bounds,
    }
    inner: Json = {
        "name": first,
        "type": "STATIC",
        "connect_timeout": "1s",
        **_NO_PANIC,
        **bounds,
        **_ejection(upstream.breaker),
        "load_assignment": _endpoint(first, {"envoy_internal_address": {"server_listener_name": first}}),
    }
    outer: Json = {
        "name": real,
        **_found_by_name(upstream.host),
        "connect_timeout": _duration(upstream.connect_s),
        **_bounds(upstream.connections_max, pending=bounds),
        **_http1(idle_s=upstream.idle_s),
        "load_assignment": _endpoint(real, _socket(Address(upstream.host, upstream.port))),
    }
    if upstream.tls:
        outer["transport_socket"] = _tls(upstream.tls, upstream.host, ca_file)
    return [together, inner, outer]


_NO_PANIC: Json = {
    # of one endpoint, ejected means all are gone; Envoy would then ask them all the same
    "common_lb_config": {"healthy_panic_threshold": {"value": 0}}
}


def _bounds(connections_max: int, *, pending: Json | None = None) -> Json:
    """Envoy's own bounds (1024, and only 3 retries at a time) would lose requests just when an upstream dies."""
    if pending is not None:
        threshold = {**pending["circuit_breakers"]["thresholds"][0], "max_connections": connections_max}
    else:
        names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
        threshold = dict.fromkeys(names, connections_max)
    return {"circuit_breakers": {"thresholds": [threshold]}}


def _ejection(breaker: Breaker) -> Json:
    if not breaker.enabled:
        return {}
    return {
        "outlier_detection": {
            "consecutive_5xx": breaker.consecutive,
            "enforcing_consecutive_5xx": 100,
            "enforcing_success_rate": 0,
            "interval": _duration(min(1.0, breaker.open_s)),
            "base_ejection_time": _duration(breaker.open_s),
            "max_ejection_time": _duration(max(breaker.open_s, breaker.open_s_max)),
            "max_ejection_percent": 100,
        }
    }


def _found_by_name(host: str) -> Json:
    if _is_ip(host):
        return {"type": "STATIC"}
    # without a name server Envoy must still start: that is what the other priority is for
    return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED", "wait_for_warm_on_init": False}


def _http1(idle_s: float) -> Json:
    options: Json = {
        "@type": HTTP_OPTIONS,
        "common_http_protocol_options": {"idle_timeout": _duration(idle_s)},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def _tls(tls: Tls, host: str, ca_file: str) -> Json:
    name = tls.server_name or host
    common: Json = {"alpn_protocols": ["http/1.1"]}
    if tls.verify:
        san = {"san_type": "IP_ADDRESS" if _is_ip(name) else "DNS", "matcher": {"exact": name}}
        common["validation_context"] = {
            "trusted_ca": {"filename": tls.ca_file or ca_file},
            "match_typed_subject_alt_names": [san],
        }
    context: Json = {"@type": TLS_CONTEXT, "common_tls_context": common}
    if not _is_ip(name):
        context["sni"] = name
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


# --- small parts ---------------------------------------------------------------------------------------------------


def _endpoint(cluster: str, address: Json) -> Json:
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def _socket(address: Address) -> Json:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _duration(seconds: float) -> str:
    # Envoy takes a 0s for "never": what is bounded must stay so
    return f"{max(seconds, 0.001):.3f}s"


def _body_bytes_max(settings: Settings) -> int:
    own = [route.body_bytes_max for route in settings.routes if isinstance(route.body_bytes_max, int)]
    return min(max([settings.server.limits.body_bytes_max, *own]), 2**32 - 1)
