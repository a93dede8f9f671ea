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

from typing import Any

import yaml

from understudy.envoy.addresses import Address, read_address, sidecar_address
from understudy.envoy.clusters import sidecar_cluster, upstream_clusters
from understudy.envoy.legs import Leg, Templates, legs
from understudy.envoy.listeners import front_listener, inner_listener
from understudy.envoy.words import TYPES, Json, socket_address
from understudy.proxy.settings.settings import Settings

LISTEN = "127.0.0.1:10000"
ADMIN = "127.0.0.1:9901"
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian, Ubuntu and Alpine, and so Envoy's own images, keep the system's certificate authorities."""

INTERNAL = f"{TYPES}.bootstrap.internal_listener.v3.InternalListener"


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
    clusters = [sidecar_cluster(settings, back)]
    for leg, upstream in asked:
        clusters += upstream_clusters(settings, leg.route.name, upstream, ca_file)
    return {
        "node": {"id": "understudy", "cluster": "understudy"},
        "admin": {"address": socket_address(read_address(admin))},
        "bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": {"@type": INTERNAL}}],
        "static_resources": {
            "listeners": [
                front_listener(settings, front, found),
                *(inner_listener(settings, leg, upstream) for leg, upstream in asked),
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
