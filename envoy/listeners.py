"""Envoy's listeners: the one the application talks to, and one without a port before each upstream."""

from __future__ import annotations

import json

from understudy.envoy.addresses import Address
from understudy.envoy.claims import Claim, claims_of, path_match, rewritten, virtual_hosts
from understudy.envoy.legs import Leg, Upstream
from understudy.envoy.words import TYPES, Json, duration, set_header, socket_address
from understudy.proxy.http.heads import IDEMPOTENT
from understudy.proxy.settings.settings import Settings, UpstreamTier
from understudy.proxy.tiers.judging import FAILURES

RETRIES = 2
"""Priority 0, priority 1, and once round again should the sidecar itself be just restarting."""

SLACK_S = 1.0
"""How much longer than the sidecar promises Envoy waits: the sidecar's own timeout says more than Envoy's."""

READS = r".*/(embeddings|chat/completions|points(/(search|query|scroll|count|recommend|discover).*)?)"
"""Paths whose POST asks and changes nothing, so that a lost one may be sent again. What is not named here is only sent
to the sidecar when the upstream can't have acted on it."""

HTTP_MANAGER = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = f"{TYPES}.filters.http.router.v3.Router"
PREVIOUS_PRIORITIES = f"{TYPES}.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
HEAD_KIB_MAX = 8192
"""The most that Envoy lets a request's head be."""
NAMES_SHOWN_MAX = 40


def front_listener(settings: Settings, front: Address, found: list[Leg]) -> Json:
    """Where the application connects: everything that is claimed, and a 404 for the rest."""
    claims = [claim for leg in found for claim in claims_of(leg)]
    return {
        "name": "application",
        "address": socket_address(front),
        # what is not held whole can't be sent a second time: Envoy's own 1 MiB would end retries there
        "per_connection_buffer_limit_bytes": _body_bytes_max(settings),
        "filter_chains": _http(settings, "application", virtual_hosts(claims, _front_routes, [_not_found(found)])),
    }


def inner_listener(settings: Settings, leg: Leg, upstream: Upstream) -> Json:
    """How a leg's upstream is asked: its path, its host, its headers, and no longer than the sidecar would wait."""
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
            "idle_timeout": duration(limits.idle_s),
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
            "idle_timeout": duration(_silence_s_max(leg)),
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
        "per_try_timeout": duration(_head_s_max(leg)),
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
            "idle_timeout": duration(max(upstream.idle_s, upstream.answer_s + SLACK_S)),
            "retry_policy": {"num_retries": 0, "per_try_timeout": duration(upstream.answer_s)},
        },
        "request_headers_to_add": [set_header(key, value) for key, value in upstream.headers.items()],
        "response_headers_to_add": [
            set_header("x-understudy-tier", upstream.rank),
            set_header("x-understudy-source", upstream.tier),
        ],
    }


def _not_found(found: list[Leg]) -> Json:
    names = [leg.route.name for leg in found if leg.matches]
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    message = f"no route claims this request; there are: {', '.join(names[:NAMES_SHOWN_MAX]) or 'none'}{more}"
    body = json.dumps({"error": {"message": message, "type": "not_found_error", "code": "no_route"}})
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": body}},
        "response_headers_to_add": [set_header("content-type", "application/json")],
    }


def _body_bytes_max(settings: Settings) -> int:
    own = [route.body_bytes_max for route in settings.routes if isinstance(route.body_bytes_max, int)]
    return min(max([settings.server.limits.body_bytes_max, *own]), 2**32 - 1)
