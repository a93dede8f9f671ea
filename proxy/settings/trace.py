"""What the policy files say of traces: where spans are sent, under which name, and of how many calls."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from understudy.proxy.settings.types import Frozen, PositiveSeconds, Secret, Share


class Traces(Frozen, frozen=True):
    """Spans of calls for an OpenTelemetry collector, by OTLP over HTTP. Needs `pip install 'understudy[otel]'`."""

    to: str
    """The collector's URL for traces: http(s)://host:4318/v1/traces."""
    headers: dict[str, Secret] = {}
    """What the collector wants to see beside that, such as a key."""
    service: Annotated[str, Meta(min_length=1, max_length=128)] = "understudy"
    """What spans say as service.name."""
    share: Share = 1.0
    """Of the calls that come without a traceparent. Those that come with one do as it says."""
    wait_s: PositiveSeconds = 5.0
    """How long the collector may take; what it has not taken by then is lost, and counted."""
