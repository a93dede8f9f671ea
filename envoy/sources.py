"""Where Envoy finds the secrets it must send, without anybody writing them down: `%ENVIRONMENT(NAME)%`.

Settings hold what a secret is, not where it came from. So the folder is read once more, with the names of variables in
the place of their values; a header that then holds a name is one whose value Envoy can find by itself. What comes from
a file, or stands in the policy, Envoy can't find, and is left to the sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from understudy.envoy.legs import Templates
from understudy.proxy.settings.settings import Secret, Settings, UpstreamTier, endpoints_of

_MARK = re.compile(r"ENV--([A-Za-z_][A-Za-z0-9_]*)--ENV")
_SCHEME = re.compile(r"((Bearer|Basic|Token|ApiKey|Api-Key|Key) )?")
"""All that may stand beside a variable: anything else in a header could be a secret itself."""
NAMES_MAX = 64
"""How many variables are looked at: each costs one reading of the folder."""

Load = Callable[[Mapping[str, str]], Settings | None]
"""Read the folder with this environment; None when it has faults."""


def find_templates(settings: Settings, names: list[str], environ: Mapping[str, str], load: Load) -> Templates:
    """For each tier, those of its headers whose values Envoy can take from a variable among `names`.

    One variable at a time takes the place of its value, and only stays if the folder still reads without a fault: one
    that is also a port or a URL somewhere would not.
    """
    marked = dict(environ)
    read = settings
    for name in names[:NAMES_MAX]:
        if environ.get(name):
            tried = {**marked, name: f"ENV--{name}--ENV"}
            found = load(tried)
            if found is not None and _same_shape(found, settings):
                marked, read = tried, found
    return {
        (route.name, tier.name): _templates(endpoints_of(tier)[0].headers, endpoints_of(other)[0].headers, environ)
        for route, twin in zip(settings.routes, read.routes, strict=True)
        for tier, other in zip(route.tiers, twin.tiers, strict=True)
        if isinstance(tier, UpstreamTier) and isinstance(other, UpstreamTier)
    }


def _same_shape(found: Settings, settings: Settings) -> bool:
    return [(route.name, [tier.name for tier in route.tiers]) for route in found.routes] == [
        (route.name, [tier.name for tier in route.tiers]) for route in settings.routes
    ]


def _templates(
    headers: Mapping[str, Secret], others: Mapping[str, Secret], environ: Mapping[str, str]
) -> dict[str, str]:
    templates: dict[str, str] = {}
    for name, secret in headers.items():
        marked = others.get(name)
        parts = _MARK.split(marked.reveal()) if marked is not None else []
        if len(parts) != 3 or not _SCHEME.fullmatch(parts[0]) or parts[2]:
            continue
        scheme, variable, _ = parts
        # the second reading is only believed when what it found makes the very value
        if scheme + environ.get(variable, "") == secret.reveal():
            templates[name] = f"{scheme}%ENVIRONMENT({variable})%"
    return templates
