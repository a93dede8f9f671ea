"""Small values that Envoy's messages are made of."""

from __future__ import annotations

import ipaddress
from typing import Any

from understudy.envoy.addresses import Address

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy.extensions"


def endpoint(cluster: str, address: Json) -> Json:
    """A load assignment of one endpoint."""
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def socket_address(address: Address) -> Json:
    """Where to listen or connect."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def is_ip(host: str) -> bool:
    """Whether no name server is needed for `host`."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def duration(seconds: float) -> str:
    """Seconds as Envoy writes them, never 0s, which it takes for "without end"."""
    return f"{max(seconds, 0.001):.3f}s"


def set_header(key: str, value: str) -> Json:
    """Set a header, over any that is there."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
