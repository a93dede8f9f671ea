"""Make spans of what was noted of calls, and send them to an OpenTelemetry collector, off the calls' path.

    calls --Span--> ended (SPANS_MAX) --once a second--> a thread: gen_ai.* attributes --OTLP/HTTP--> collector
                        |                                                   |
                        +-- too many: dropped                               +-- not taken: failed

Attributes are those of OpenTelemetry's semantic conventions for generative AI, and ours under `understudy.`. Nothing
that was asked or answered is among them, and no credentials. The SDK is imported where a collector is named, and only
there.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from understudy.policies.service import Request
from understudy.policies.spans import Span
from understudy.policies.trace import Sampler
from understudy.policies.usage import Usage
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.dialects.base import BadRequest
from understudy.proxy.dialects.usage import model_in
from understudy.proxy.settings.outcomes import provider_of
from understudy.proxy.settings.settings import Settings, UpstreamTier, at_endpoint, endpoints_of
from understudy.proxy.settings.stream_rules import can_fail_over
from understudy.proxy.settings.trace import Traces

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

SPANS_MAX = 4096
"""Calls that are over and whose spans have not been sent; more are dropped, and counted."""
BATCH_MAX = 512
CLOSE_S = 2.0
"""How long what is left may take to be sent when we end."""
PROVIDERS = {"azure": "azure.ai.openai", "plain": "unknown"}
"""Where the conventions have another name for a provider than the outcomes' table."""
OURSELVES = "understudy"
OPERATIONS = {"embed": "embeddings", "retrieve": "retrieval", "generate": "chat"}

log = logging.getLogger("understudy.traces")


class Whose(NamedTuple):
    """What a tier's spans say of who was asked. `holds` says that its streams are held until their first content."""

    provider: str
    host: str
    port: int
    holds: bool


class Tracer:
    """One process's spans, for one collector. Raises ImportError where OpenTelemetry is not installed.

    `exporter` stands in for the collector in tests. `counts` are kept from one to the next: exported, failed, dropped.
    """

    def __init__(
        self, rules: Traces, *, exporter: SpanExporter | None = None, counts: dict[str, int] | None = None
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self.rules = rules
        self.sampler = Sampler(rules.share, bits=random.getrandbits)
        self.counts = counts if counts is not None else {"exported": 0, "failed": 0, "dropped": 0}
        self.whose: Mapping[tuple[str, str], Whose] = {}
        self._exporter = exporter if exporter is not None else _exporter(rules)
        self._resource = Resource.create({"service.name": rules.service})
        self._scope = InstrumentationScope("understudy")
        self._ended: list[Span] = []
        self._waiting: deque[Span] = deque()
        self._more = threading.Event()
        self._closing = False
        self._is_taken = True
        self._thread: threading.Thread | None = None

    def obey(self, settings: Settings) -> None:
        """Know the tiers of these settings."""
        self.whose = {
            (route.name, tier.name): _whose(route.dialect, tier, holds=can_fail_over(settings, route, tier.name))
            for route in settings.routes
            for _, tier in route.every_tier
            if isinstance(tier, UpstreamTier)
        }

    # --- on the loop -----------------------------------------------------------------------------------------------

    def record(self, span: Span) -> None:
        """A call is over."""
        if len(self._ended) + len(self._waiting) >= SPANS_MAX:
            self.counts["dropped"] += 1
            return
        self._ended.append(span)

    def flush(self) -> None:
        """Have what is over sent. What their answers took has been counted by then."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._waiting.extend(ended)
            self._more.set()
            if self._thread is None:
                # not before there is something to send: settings may be read and not be put in force
                self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Send what is left, for CLOSE_S at most, and stop. Blocks."""
        self.flush()
        self._closing = True
        self._more.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        # ends its waiting for a collector that does not answer
        self._exporter.shutdown()

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            while self._waiting:
                self._send([self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))])
            if self._closing:
                return

    def _send(self, spans: Sequence[Span]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export([self.made(span) for span in spans])
        except Exception:
            log.exception("spans could not be sent")
            result = SpanExportResult.FAILURE
        is_taken = result is SpanExportResult.SUCCESS
        self.counts["exported" if is_taken else "failed"] += len(spans)
        if is_taken != self._is_taken:
            self._is_taken = is_taken
            host = urlsplit(self.rules.to).hostname
            log.log(
                logging.INFO if is_taken else logging.WARNING, "%s %s spans", host, "takes" if is_taken else "takes no"
            )

    def made(self, span: Span) -> ReadableSpan:
        """The span as OpenTelemetry has it."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        whose = self.whose.get((span.route, span.source))
        state = TraceState.from_header([span.parent.state]) if span.parent and span.parent.state else None
        sampled = TraceFlags(TraceFlags.SAMPLED)
        trace_id = int(span.trace_id, 16)
        above = None
        if span.parent is not None:
            above = SpanContext(trace_id, int(span.parent.span_id, 16), True, sampled, state)
        attributes = self._attributes(span, whose)
        return ReadableSpan(
            _name(attributes, span),
            SpanContext(trace_id, int(span.span_id, 16), False, sampled, state),
            above,
            self._resource,
            attributes,
            _events(span),
            kind=SpanKind.CLIENT if whose is not None else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=int(span.began * 1e9),
            end_time=int((span.began + span.took_s) * 1e9),
            instrumentation_scope=self._scope,
        )

    def _attributes(self, span: Span, whose: Whose | None) -> dict[str, Any]:
        told: dict[str, Any] = {
            "understudy.call.id": span.call_id,
            "understudy.route": span.route,
            "understudy.dialect": span.dialect,
            "understudy.tier": span.tier or "none",
            "understudy.source": span.source,
            "understudy.reason": span.reason,
            "understudy.attempts": span.attempts or None,
            "understudy.upstream.duration": span.upstream_s or None,
            "understudy.faults": span.faults,
            "understudy.question": span.question,
            "understudy.built_on": span.built_on,
            "error.type": span.error,
            "http.response.status_code": span.status or None,
        }
        if span.wants_stream or span.first_s is not None:
            told["understudy.stream.end"] = span.end
        if whose is not None and whose.host:
            told |= {"server.address": whose.host, "server.port": whose.port}
        if span.kind in OPERATIONS:
            told |= _gen_ai(span, whose)
        return {name: value for name, value in told.items() if value not in ("", (), None)}


def _gen_ai(span: Span, whose: Whose | None) -> dict[str, Any]:
    """The attributes of the semantic conventions for generative AI."""
    operation = OPERATIONS[span.kind]
    if span.kind == "generate" and _is_completion(span):
        operation = "text_completion"
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        # nobody was asked who has a name among providers: a cache, a file of answers, the local models
        "gen_ai.provider.name": whose.provider if whose is not None else OURSELVES,
    }
    if span.kind == "retrieve":
        where = _collection_of(span)
        return told | {"gen_ai.data_source.id": where, "db.system.name": span.dialect, "db.collection.name": where}
    told["gen_ai.request.model"] = model_in(span.asked)
    if span.kind == "generate":
        told["gen_ai.request.stream"] = span.wants_stream or None
        if span.first_s is not None and (whose is None or whose.holds):
            told["gen_ai.response.time_to_first_chunk"] = span.first_s
    return told | _answers(span)


def _answers(span: Span) -> dict[str, Any]:
    """What upstreams told of their answers, those of retries and hedges together: that is what is paid for."""
    if not span.answers:
        return {}
    usages = [each.usage for each in span.answers]
    last = span.answers[-1]
    told: dict[str, Any] = {
        "gen_ai.response.model": last.usage.model,
        "gen_ai.response.id": last.response_id,
        "gen_ai.response.finish_reasons": (last.finish,) if last.finish else (),
        "gen_ai.usage.input_tokens": _sum(usages, "input"),
        "gen_ai.usage.cache_read.input_tokens": _sum(usages, "cached") or None,
        "gen_ai.usage.cache_creation.input_tokens": _sum(usages, "cache_written") or None,
        "understudy.usage.estimated": any(usage.is_estimated for usage in usages) or None,
    }
    if span.kind == "generate":
        told["gen_ai.usage.output_tokens"] = _sum(usages, "output")
        told["gen_ai.usage.reasoning.output_tokens"] = _sum(usages, "reasoning") or None
    return told


def _collection_of(span: Span) -> str:
    try:
        return DIALECTS[span.dialect].collection_of(Request(span.method, span.target, [], span.asked))
    except (ValueError, BadRequest):
        # a long body is not there as a whole
        return ""


def _sum(usages: Sequence[Usage], field: str) -> int:
    return sum(getattr(usage, field) for usage in usages)


def _is_completion(span: Span) -> bool:
    """Whether a prompt was gone on with, and no chat."""
    return span.dialect == "openai-completions" or span.target.rstrip(b"/").endswith(b"/api/generate")


def _name(attributes: Mapping[str, Any], span: Span) -> str:
    """`chat gpt-4o`: what is done, and with which model or collection."""
    operation = attributes.get("gen_ai.operation.name")
    if operation is None:
        return f"{span.method.decode('latin-1')} {span.route}"
    what = attributes.get("gen_ai.request.model") or attributes.get("gen_ai.data_source.id")
    return f"{operation} {what}" if what else operation


def _events(span: Span) -> list[Event]:
    """Who was asked in vain, and why: when is not known any more, so all stand at the beginning."""
    from opentelemetry.sdk.trace import Event

    at = int(span.began * 1e9)
    return [
        Event(f"understudy.tier.{outcome}", {"understudy.tier.name": tier, "understudy.reason": reason}, at)
        for tier, outcome, reason in span.steps
        if outcome != "answered"
    ]


def _whose(dialect: str, tier: UpstreamTier, *, holds: bool) -> Whose:
    endpoints = list(endpoints_of(tier))
    first = at_endpoint(tier, endpoints[0])
    named = provider_of(first, dialect)
    provider = PROVIDERS.get(named, named)
    if (tier.speaks or dialect).startswith("azure-openai"):
        provider = "azure.ai.openai"
    if len(endpoints) > 1 or endpoints[0].socket:
        return Whose(provider, "", 0, holds)
    try:
        url = urlsplit(endpoints[0].url)
        return Whose(provider, url.hostname or "", url.port or (443 if url.scheme == "https" else 80), holds)
    except ValueError:
        return Whose(provider, "", 0, holds)


def _exporter(rules: Traces) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    # it would say so of every batch; we say it once
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    headers = {name: value.reveal() for name, value in rules.headers.items()}
    return OTLPSpanExporter(endpoint=rules.to, headers=headers, timeout=rules.wait_s)
