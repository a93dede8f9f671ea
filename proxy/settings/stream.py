"""What a route, a tier or an endpoint may say of streamed answers: their clocks, and what follows when one breaks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Bytes, Count, Frozen, PositiveSeconds

Pattern = Annotated[str, Meta(pattern=r"^[^\s]{1,128}$", description="a model's name, `*` for any letters in it")]


class Patience(Frozen, frozen=True):
    """Other limits for models that think before they speak. Whole answers of theirs have as long."""

    models: Annotated[list[Pattern], Meta(min_length=1, max_length=64)]
    """Names of models as this tier is asked for them, `*` for any letters: `o3*`, `*-thinking*`."""
    first_content_s: PositiveSeconds
    """Seconds to the first content. The call's deadline is put off as far."""
    gap_s: PositiveSeconds | None = None
    """Seconds between two contents; without it, as for other models."""


class Streaming(Frozen, frozen=True):
    """Streamed answers: by when their parts must come, what is held back, and what follows when one breaks."""

    headers_s: PositiveSeconds | None = None
    """Seconds from the request's last byte to the answer's head; without it, first_content_s."""
    first_content_s: PositiveSeconds | None = None
    """Seconds to the first content, which a role, a ping or a comment is not; without it, the tier's first_byte_s."""
    gap_s: PositiveSeconds | None = None
    """Seconds between two contents; without it, the tier's idle_s."""
    total_s: PositiveSeconds = 3600.0
    """Seconds that a whole stream may take."""
    patient: Annotated[list[Patience], Meta(max_length=16)] = []
    """Longer limits by the model's name; the first that fits."""
    contents_per_s_min: Annotated[float, Meta(gt=0)] | None = None
    """Contents a second (mostly a token each) at a stream's beginning, below which the next tier is asked instead."""
    contents_within_s: PositiveSeconds = 2.0
    """With contents_per_s_min: how long a slow beginning is held and counted. What is quick enough waits no longer."""
    held_events_max: Count = 256
    """Start-up events held back until the first content, so that an error among them can still fail over."""
    held_bytes_max: Bytes = 256 * 1024
    """And their bytes. Nothing is held where nobody else could answer."""
    after_first_content: Literal["error", "continue", "buffer"] = "error"
    """When a stream breaks in the middle. error: it is said in the dialect's words. continue: another endpoint that can
    be prefilled goes on. buffer: nothing is given before all of it is there."""
    buffer_bytes_max: Bytes = 1024 * 1024
    """buffer: what is held at most; a longer stream is handed over from there on."""
    buffer_s_max: PositiveSeconds = 30.0
    """buffer: seconds from the first content; a longer stream is handed over then."""
    keep_alive_s: Annotated[float, Meta(ge=1, le=3600, description="seconds")] | None = None
    """Comments to the caller while nothing else comes, so that no load balancer hangs up. The first of them goes behind
    a 200: what fails later is said in the stream. Off unless it is set; not for Ollama's lines, which have none."""
