"""Envoy's clusters: the sidecar, and for each upstream itself, the way to it, and the two priorities together."""

from __future__ import annotations

from understudy.envoy.addresses import Address
from understudy.envoy.legs import Upstream
from understudy.envoy.words import TYPES, Json, duration, endpoint, is_ip, socket_address
from understudy.proxy.settings.settings import Breaker, Settings, Tls

AGGREGATE = f"{TYPES}.clusters.aggregate.v3.ClusterConfig"
TLS_CONTEXT = f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"
HTTP_OPTIONS = f"{TYPES}.upstreams.http.v3.HttpProtocolOptions"
GIVEN_UP_EARLY = 0.8
"""When an idle connection is given up, as a share of when the other side would: no request meets a closing one."""


def sidecar_cluster(settings: Settings, back: Address) -> Json:
    """The last resort: one cluster for all routes, and none of its failures ever ejects it."""
    limits = settings.server.limits
    return {
        "name": "sidecar",
        **_found_by_name(back.host),
        "connect_timeout": "1s",
        **_bounds(limits.connections_max),
        **_http1(idle_s=limits.idle_s * GIVEN_UP_EARLY),
        "load_assignment": endpoint("sidecar", socket_address(back)),
    }


def upstream_clusters(settings: Settings, name: str, upstream: Upstream, ca_file: str) -> list[Json]:
    """The upstream itself (`real`), the way to it (`first`), and the two priorities together (`route`)."""
    limits = settings.server.limits
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
        **_bounds(limits.connections_max),
    }
    inner: Json = {
        "name": first,
        "type": "STATIC",
        "connect_timeout": "1s",
        **_NO_PANIC,
        **_bounds(limits.connections_max),
        **_ejection(upstream.breaker),
        **_http1(idle_s=limits.idle_s * GIVEN_UP_EARLY),
        "load_assignment": endpoint(first, {"envoy_internal_address": {"server_listener_name": first}}),
    }
    outer: Json = {
        "name": real,
        **_found_by_name(upstream.host),
        "connect_timeout": duration(upstream.connect_s),
        **_bounds(limits.connections_max, connections_max=upstream.connections_max),
        **_http1(idle_s=upstream.idle_s),
        "load_assignment": endpoint(real, socket_address(Address(upstream.host, upstream.port))),
    }
    if upstream.tls:
        outer["transport_socket"] = _tls(upstream.tls, upstream.host, ca_file)
    return [together, inner, outer]


_NO_PANIC: Json = {
    # of one endpoint, ejected means all are gone; Envoy would then ask them all the same
    "common_lb_config": {"healthy_panic_threshold": {"value": 0}}
}


def _bounds(callers_max: int, *, connections_max: int | None = None) -> Json:
    """Envoy's own bounds (1024, and only 3 retries at a time) would lose requests just when an upstream dies."""
    threshold = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), callers_max)
    return {"circuit_breakers": {"thresholds": [{**threshold, "max_connections": connections_max or callers_max}]}}


def _ejection(breaker: Breaker) -> Json:
    if not breaker.enabled:
        return {}
    return {
        "outlier_detection": {
            "consecutive_5xx": breaker.consecutive,
            "enforcing_consecutive_5xx": 100,
            "enforcing_success_rate": 0,
            "interval": duration(min(1.0, breaker.open_s)),
            "base_ejection_time": duration(breaker.open_s),
            "max_ejection_time": duration(max(breaker.open_s, breaker.open_s_max)),
            "max_ejection_percent": 100,
        }
    }


def _found_by_name(host: str) -> Json:
    if is_ip(host):
        return {"type": "STATIC"}
    # without a name server Envoy must still start: that is what the other priority is for
    return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED", "wait_for_warm_on_init": False}


def _http1(idle_s: float) -> Json:
    options: Json = {
        "@type": HTTP_OPTIONS,
        "common_http_protocol_options": {"idle_timeout": duration(idle_s)},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}


def _tls(tls: Tls, host: str, ca_file: str) -> Json:
    name = tls.server_name or host
    common: Json = {"alpn_protocols": ["http/1.1"]}
    if tls.verify:
        san = {"san_type": "IP_ADDRESS" if is_ip(name) else "DNS", "matcher": {"exact": name}}
        common["validation_context"] = {
            "trusted_ca": {"filename": tls.ca_file or ca_file},
            "match_typed_subject_alt_names": [san],
        }
    context: Json = {"@type": TLS_CONTEXT, "common_tls_context": common}
    if not is_ip(name):
        context["sni"] = name
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}
