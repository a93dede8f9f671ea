"""Which table of outcomes a tier goes by: its own rows, its route's, then the folder's table or the one that ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast, get_args
from urllib.parse import urlsplit

from understudy import policies
from understudy.policies.outcomes import Outcomes, Said, pattern_fault, row_fault, shadowed
from understudy.proxy.settings.checking import check_file
from understudy.proxy.settings.policy_files import FILE_BYTES_MAX, PolicyFile, compose, read_bounded
from understudy.proxy.settings.settings import (
    File,
    Outcome,
    Provider,
    Route,
    Settings,
    UpstreamTier,
    at_endpoint,
    endpoints_of,
)
from understudy.proxy.settings.spots import Fault, Grown, Spot

SHIPPED = Path(policies.__file__ or "").with_name("outcomes.yaml")
# longest first where one ends in another
HOSTS: tuple[tuple[str, Provider], ...] = (
    (".openai.azure.com", "azure"),
    (".cognitiveservices.azure.com", "azure"),
    (".services.ai.azure.com", "azure"),
    (".openai.com", "openai"),
    (".anthropic.com", "anthropic"),
    (".cohere.com", "cohere"),
    (".cohere.ai", "cohere"),
    (".cloud.qdrant.io", "qdrant"),
    (".pinecone.io", "pinecone"),
    (".trychroma.com", "chroma"),
    (".zillizcloud.com", "milvus"),
    (".weaviate.cloud", "weaviate"),
    (".weaviate.network", "weaviate"),
    (".elastic-cloud.com", "elasticsearch"),
    (".elastic.cloud", "elasticsearch"),
    (".es.amazonaws.com", "elasticsearch"),
    (".aoss.amazonaws.com", "elasticsearch"),
)
PORTS: Mapping[int, Provider] = {11434: "ollama", 9200: "elasticsearch", 19530: "milvus"}
"""Where those listen who have no host of their own; only asked where the dialect says nothing."""
KEY_HEADERS = frozenset({"authorization", "x-api-key", "api-key"})


@dataclass(frozen=True, slots=True)
class Shipped:
    """The table that ships, and where each of its rows stands."""

    rows: tuple[Outcome, ...]
    spots: Mapping[str, Spot]
    table: Outcomes


@lru_cache(maxsize=1)
def shipped() -> Shipped:
    """The table that ships, read once. Raises ValueError when the installed file is broken."""
    faults: list[Fault] = []
    file = PolicyFile(SHIPPED, read_bounded(SHIPPED, FILE_BYTES_MAX))
    node = compose(file, faults)
    grown = Grown()
    built = cast("File", grown.build(check_file(file, node, {}, faults), "")) if node is not None else File()
    if faults or not built.outcomes:
        raise ValueError("\n".join(map(str, faults)) or f"{SHIPPED}: no outcomes")
    return Shipped(tuple(built.outcomes), grown.spots, Outcomes(built.outcomes))


def base_table(settings: Settings) -> Outcomes:
    """The table that every route of `settings` stands on."""
    return Outcomes(settings.outcomes) if settings.outcomes else shipped().table


def table_of(base: Outcomes, route: Route, tier: UpstreamTier, at: str = "") -> Outcomes:
    """The table of one tier, made ready. `at` is the route's path in the settings."""
    table = Outcomes(route.outcomes, f"{at}.outcomes", base) if route.outcomes else base
    if not tier.outcomes:
        return table
    key = next(key for key, each in route.every_tier if each.name == tier.name)
    return Outcomes(tier.outcomes, f"{at}.{key}.outcomes", table)


def provider_of(tier: UpstreamTier, dialect: str) -> Provider:
    """Whose errors those of one endpoint are: as the tier says, by the URL's host, by the dialect, or by the port."""
    if tier.provider is not None:
        return tier.provider
    try:
        url = urlsplit(tier.url)
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:
        host, port = "", None
    for ending, provider in HOSTS:
        if f".{host}".endswith(ending):
            return provider
    if port == 11434:
        return "ollama"
    # dialects are named for their providers: openai-chat, qdrant
    spoken = tier.speaks or dialect
    named = "elasticsearch" if spoken == "opensearch" else spoken.partition("-")[0]
    if named != "plain" and named in get_args(Provider):
        return cast("Provider", named)
    return PORTS.get(port or 0, "plain")


def providers_of(tier: UpstreamTier, dialect: str) -> tuple[Provider, ...]:
    """Whose errors the endpoints of a tier give, each provider once."""
    found: list[Provider] = []
    for endpoint in endpoints_of(tier):
        provider = provider_of(at_endpoint(tier, endpoint), dialect)
        if provider not in found:
            found.append(provider)
    return tuple(found)


def sets_key(tier: UpstreamTier) -> bool:
    """Whether the key that an upstream is sent is ours and not the caller's."""
    names = [*tier.headers, *(name for endpoint in tier.endpoints for name in endpoint.headers)]
    return any(name.lower() in KEY_HEADERS for name in names)


def deciding(
    settings: Settings, origins: Mapping[str, Spot], name: str, status: int, codes: Sequence[str]
) -> list[dict[str, str]]:
    """For each upstream tier of the route `name`, and each provider it asks: the verdict on such an error, without a
    message, and the place of the row that decides."""
    n, route = next((n, route) for n, route in enumerate(settings.routes) if route.name == name)
    base = base_table(settings)
    found: list[dict[str, str]] = []
    for _, tier in route.every_tier:
        if not isinstance(tier, UpstreamTier):
            continue
        table = table_of(base, route, tier, f"routes[{n}]")
        for provider in providers_of(tier, route.dialect):
            lowered = tuple(code.lower() for code in codes)
            verdict = table.of(Said(provider, status, lowered, own_key=sets_key(tier)))
            spot = origins.get(verdict.at) or shipped().spots.get(verdict.at)
            found.append(
                {
                    "tier": tier.name,
                    "provider": provider,
                    "outcome": verdict.outcome,
                    "follow": verdict.follow,
                    "reason": verdict.reason or f"status_{status}",
                    "from": spot.place if spot else "no row",
                }
            )
    return found


def row_faults(rows: Sequence[Outcome], providers: frozenset[str] | None = None) -> Iterator[tuple[str, str]]:
    """What is wrong with rows that stand together: a key in the list (`[2].message`) and why.

    `providers` are those who can say anything here; None where anybody can.
    """
    broken = False
    for n, row in enumerate(rows):
        if row.message is not None and (why := pattern_fault(row.message)):
            broken = True
            yield f"[{n}].message", why
        elif why := row_fault(row):
            yield f"[{n}]", why
        elif providers is not None and row.provider is not None and not _named(row) & providers:
            yield f"[{n}].provider", f"can never match: who is asked here is {' or '.join(sorted(providers))}"
    if not broken:
        for n, by in shadowed(rows):
            yield f"[{n}]", f"can never match: whatever fits it fits row {by + 1} above it first"


def _named(row: Outcome) -> set[str]:
    return {row.provider} if isinstance(row.provider, str) else set(row.provider or ())
