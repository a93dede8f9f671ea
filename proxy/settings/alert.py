"""What the policy files say about objectives, and about whom to tell when they are missed."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Frozen, Name, PositiveSeconds, Seconds, Secret

AnyShare = Annotated[float, Meta(ge=0, le=1, description="a share of one")]


class Objectives(Frozen, frozen=True):
    """What is promised of a route's calls, as shares of them over thirty days; alerts go by how fast that is spent."""

    answered_share_min: AnyShare = 0.999
    """Availability: calls that some tier answers. 0 promises nothing."""
    error_share_max: AnyShare = 0.01
    """Calls that are answered with a 5xx, or by nobody. 1 promises nothing, here and below."""
    late_share_max: AnyShare = 0.05
    """Calls that are not answered, or whose stream has no content, within latency_s: with 0.05 that is their p95."""
    latency_s: PositiveSeconds = 2.0
    agreement_min: AnyShare = 0.85
    """Of a route with a `watch`: how many of the points that the local copy finds its searches must find, on average. 0
    promises nothing."""
    fallback_share_max: AnyShare = 0.05
    """Calls that the first tier does not answer itself: a fallback hides an outage from callers, and this does not."""


class Receiver(Frozen, frozen=True):
    """Whom to tell."""

    name: Name
    kind: Literal["alertmanager", "webhook", "slack", "command"]
    """Alertmanager's API v2, its webhook payload (version 4), a Slack-compatible webhook, or a command of one's own."""
    url: Secret | None = None
    """Where; Alertmanager's without the /api/v2/alerts behind it. Shown nowhere, as it may be a key by itself."""
    headers: dict[str, Secret] = {}
    """Sent with it: authorization, mostly."""
    command: list[str] = []
    """A program and its arguments; it gets the webhook payload on its standard input. No shell."""
    severity_min: Literal["warning", "critical"] = "warning"
    """What it is told of: everything, or critical alerts alone."""
    timeout_s: PositiveSeconds = 10.0


class Alerts(Frozen, frozen=True):
    """How objectives are watched, and who hears of it."""

    look_s: PositiveSeconds = 10.0
    """How often."""
    repeat_s: Seconds = 14400.0
    """After how long a webhook, Slack or a command is told once more of what still goes on; 0 never."""
    labels: dict[str, str] = {}
    """Further labels of every alert, such as a cluster; the same in all replicas, which is how they are told as one."""
    runbook_url: str = ""
    """What the runbook annotation begins with; without it, it names the page of the knowledge base that ships."""
    receivers: list[Receiver] = []
