"""What a policy folder means: frozen, typed values, believed once.

    YAML files -> trees in which every value knows its spot -> defaults laid under -> these types

`reading` does the reading and finds every fault; the rest of the program sees only what is defined here. The JSON
Schema that editors use is made from this file as well, and from those it builds on (`server`, `types`, `attempt`,
...): a type's docstring, the string under a field and a Meta's description are what an editor shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import UNSET, Meta, UnsetType, field, structs

from understudy.proxy.settings.alert import Objectives
from understudy.proxy.settings.alert import Receiver as Receiver
from understudy.proxy.settings.attempt import Breaker, Budget, Deadline, Hedge, Retry

# what stands elsewhere for its length alone is part of the settings all the same
from understudy.proxy.settings.balance import Balance, Ramp
from understudy.proxy.settings.balance import Ejection as Ejection
from understudy.proxy.settings.cache import Cache, Coalesce
from understudy.proxy.settings.health import ServiceTier
from understudy.proxy.settings.health import TierClause as TierClause
from understudy.proxy.settings.last_word import LastWords
from understudy.proxy.settings.likeness import Likeness
from understudy.proxy.settings.llm import Llm as Llm
from understudy.proxy.settings.local import Local as Local
from understudy.proxy.settings.mirror import Mirror
from understudy.proxy.settings.overload import Limit, Quota, Shed, Tokens
from understudy.proxy.settings.overload import Rate as Rate
from understudy.proxy.settings.overload import Shedding as Shedding
from understudy.proxy.settings.questions import Questions as Questions
from understudy.proxy.settings.server import Limits as Limits
from understudy.proxy.settings.server import Server
from understudy.proxy.settings.server import ServerTls as ServerTls
from understudy.proxy.settings.spaces import DeclaredSpace as DeclaredSpace
from understudy.proxy.settings.spaces import Holding as Holding
from understudy.proxy.settings.spaces import Ledger as Ledger
from understudy.proxy.settings.spaces import Probing as Probing
from understudy.proxy.settings.spaces import Spaces
from understudy.proxy.settings.spend import Price as Price
from understudy.proxy.settings.spend import Prices, Spend
from understudy.proxy.settings.spend import SpendBudget as SpendBudget
from understudy.proxy.settings.stream import Patience as Patience
from understudy.proxy.settings.stream import Streaming
from understudy.proxy.settings.types import (
    Bytes,
    Count,
    EnvName,
    FilePath,
    Frozen,
    Name,
    PositiveSeconds,
    Seconds,
    Secret,
    Share,
    SplitKey,
)
from understudy.proxy.settings.watch import Watch

# --- rehearsals ----------------------------------------------------------------------------------------------------


class PlannedFault(Frozen, frozen=True):
    """Something broken on purpose. It does nothing unless `server.faults` is true, or UNDERSTUDY_FAULTS is `on`."""

    do: Literal["delay", "error", "abort", "cut", "garble", "dimension"]
    """delay: wait first. error: a status. abort: break the connection. cut: break off in the body. garble: no JSON any
    more. dimension: vectors one number too short."""
    name: Name | None = None
    """What it is called in x-understudy-fault, logs and metrics; without it, by what it does."""
    endpoint: Name | None = None
    """Only at this endpoint of a tier that has several."""
    share: Share = 1.0
    """The share of the calls that it befalls."""
    headers: dict[str, str] = {}
    """Only calls with these headers, of exactly these values."""
    after_s: Seconds = 0.0
    """Seconds from the moment it was put in force (or, with every_s, from each period's beginning) to its own."""
    lasts_s: PositiveSeconds | None = None
    """Seconds that it lasts; without it, for good."""
    every_s: PositiveSeconds | None = None
    """It comes again with this period, in seconds."""
    delay_s: Annotated[float, Meta(ge=0, le=3600, description="seconds")] = 1.0
    """delay: how long. Longer than the tier's first_byte_s, it is an upstream that never answers."""
    status: Annotated[int, Meta(ge=400, le=599)] = 503
    """error: the status, in an answer of the dialect's own shape."""
    retry_after_s: Seconds | None = None
    """error: what Retry-After says."""
    after_bytes: Annotated[int, Meta(ge=0, description="bytes")] = 0
    """cut: how many bytes of the body come through."""
    after_chunks: Annotated[int, Meta(ge=0)] | None = None
    """cut: how many pieces of a stream come through, instead of bytes; answers that are no stream stay whole."""


# --- what errors mean ----------------------------------------------------------------------------------------------

Embedding = Literal["openai", "azure", "anthropic", "ollama", "cohere", "tei"]
Database = Literal["qdrant", "chroma", "elasticsearch", "pinecone", "milvus", "weaviate"]
Provider = Literal[Embedding, Database, "plain"]
"""Who is asked, as far as the words of its errors go; OpenSearch has Elasticsearch's."""
Speech = Literal["openai-chat", "anthropic", "ollama-chat"]
"""The dialects that are translated into each other."""
Unconnected = Literal["connect", "connect_refused", "connect_timeout", "dns", "tls"]
Broken = Literal["reset", "first_byte_timeout", "truncated", "stalled", "garbage", "head_too_large", "upgrade"]
Late = Literal["first_content_timeout", "total_timeout", "too_slow"]
Transport = Literal[Unconnected, Broken, Late, "deadline", "error_in_200", "error_in_stream"]
Status = Annotated[int, Meta(ge=400, le=599)]
Classes = Literal["4xx", "5xx"]
Reason = Annotated[
    str, Meta(pattern=r"^([a-z][a-z0-9_]{0,31})?$", description="up to 32 lower-case letters, digits and '_'")
]


class Outcome(Frozen, frozen=True):
    """What an upstream's error means, and what may follow. The first row that fits in all it says decides."""

    outcome: Literal["success", "failure", "soft", "caller", "ignored"]
    """soft is busy in good order; a caller's fault and what is ignored never count against the endpoint."""
    provider: Provider | list[Provider] | None = None
    """Only of these providers."""
    code: str | list[str] | None = None
    """The code or the type in the error's body, in any case of letters."""
    message: str | None = None
    """A regular expression to be found in the error's message, in any case of letters."""
    status: Status | Classes | list[Status | Classes] | None = None
    transport: Transport | list[Transport] | None = None
    """What went wrong on the way, where there is no status."""
    retry_after: bool | None = None
    """Whether the answer says when to come back."""
    credentials: Literal["ours", "caller"] | None = None
    """Whose key was sent: one that the tier sets in its headers, or the caller's own."""
    follow: Literal["here", "elsewhere", "tier", "back"] | None = None
    """Ask again here, another endpoint, the next tier, or give it back as it is; failure and soft ask here."""
    reason: Reason = ""
    """What metrics, logs and x-understudy-reason call it; without it, status_500 or the transport error's word."""


# --- tiers ---------------------------------------------------------------------------------------------------------


class Tls(Frozen, frozen=True):
    """How to trust an https upstream."""

    verify: bool = True
    """Without it anybody in between can read and answer."""
    ca_file: FilePath | None = None
    """The certificates to trust instead of the system's; its path is seen from the policy file's folder."""
    server_name: str | None = None
    """The name the certificate must have, where it isn't the URL's host."""


class Endpoint(Frozen, frozen=True):
    """One of several places that answer for a tier alike. Each has a breaker, a limit and connections of its own."""

    url: str
    """http(s)://host[:port][/base]; the whole path of the request is put behind it."""
    name: Name = ""
    """What reports call it; without it, the URL's host and port."""
    socket: str | None = None
    """The path of a Unix socket to connect to, instead of the URL's host and port."""
    weight: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    """How much it can carry, beside the others."""
    zone: str | None = None
    """Where it is; those in `server.zone` are asked before the others of the same priority."""
    priority: Annotated[int, Meta(ge=0, le=15)] = 0
    """0 is asked first; the next only takes what those before it can't carry."""
    headers: dict[str, Secret] = {}
    """Set on every request to this endpoint, over the tier's own."""
    prefill: bool = False
    """It goes on with an answer that is begun in the prompt; the tier's own `prefill` says so of all its endpoints."""
    stream: Streaming | UnsetType = UNSET
    """This endpoint's own limits of streams, laid over the tier's."""
    space: str | None = None
    """The vector space it embeds into, where that is to be checked: all endpoints of a tier must share one."""

    @property
    def place(self) -> tuple[str, str | None, tuple[tuple[str, str], ...]]:
        """What makes it another one than its neighbour: where it is, and as whom it is asked."""
        headers = sorted((name.lower(), value.reveal()) for name, value in self.headers.items())
        return self.url.rstrip("/"), self.socket, tuple(headers)


class UpstreamTier(Frozen, frozen=True, tag_field="kind", tag="upstream"):
    """A service behind us. After reading, `retry`, `breaker` and `limit` are complete: laid over the route's."""

    name: Name
    url: str = ""
    """http(s)://host[:port][/base]; the whole path of the request is put behind it. Short for one endpoint."""
    socket: str | None = None
    """The path of a Unix socket to connect to, instead of the URL's host and port."""
    endpoints: Annotated[list[Endpoint], Meta(min_length=1)] = []
    """Instead of `url`: several places that answer alike, over which the calls are balanced."""
    when_env: list[EnvName] = []
    """Only there when all these environment variables are set and not empty."""
    provider: Provider | None = None
    """Whose errors these are, where neither the URL's host nor the dialect says it."""
    speaks: Speech | None = None
    """Another provider, and its wire format: prompts and answers are translated, and the caller's keys stay here."""
    models: dict[str, str] = {}
    """With `speaks`: the caller's name of a model -> this provider's; `*` is any other. Empty: names are the same."""
    answer_tokens_max: Count = 4096
    """With `speaks: anthropic`: the max_tokens of a prompt that has none, since Anthropic must be told."""
    outcomes: list[Outcome] = []
    """What this tier's errors mean: rows put before the route's."""
    space: str | None = None
    """The vector space this tier embeds into or searches in, where it differs from the route's."""
    headers: dict[str, Secret] = {}
    """Set on every request, over the caller's own. One whose value comes out empty is left out."""
    connect_s: PositiveSeconds = 2.0
    first_byte_s: PositiveSeconds = 30.0
    """From the request's last byte to the answer's first content."""
    idle_s: PositiveSeconds = 60.0
    """The longest silence between two pieces of a body."""
    connections_max: Count = 256
    pool_wait_s: Seconds = 0.1
    """Seconds a call waits for one of the connections to come back, when all are in use."""
    connection_s_max: PositiveSeconds = 3600.0
    """Seconds, at most, that a connection is used; then a new one asks DNS where to go."""
    dns_s: PositiveSeconds = 30.0
    """Seconds that the addresses of a name are believed before DNS is asked again."""
    held_bytes_max: Bytes = 8 * 1024 * 1024
    """How much of an answer is held back to see it whole before it is passed on; longer ones are streamed."""
    tls: Tls = Tls()
    prefill: bool = False
    """It goes on with an answer that is begun in the prompt, so it may continue another's stream. True of vLLM, Ollama
    and Anthropic's older models; not of OpenAI."""
    faults: list[PlannedFault] = []
    """What is broken on purpose, as if this upstream did it."""
    retry: Retry | UnsetType = UNSET
    budget: Budget | UnsetType = UNSET
    hedge: Hedge | UnsetType = UNSET
    balance: Balance | UnsetType = UNSET
    breaker: Breaker | UnsetType = UNSET
    quota: Quota | UnsetType = UNSET
    limit: Limit | UnsetType = UNSET
    ramp: Ramp | UnsetType = UNSET
    stream: Streaming | UnsetType = UNSET


def endpoints_of(tier: UpstreamTier) -> tuple[Endpoint, ...]:
    """The endpoints of a tier, each complete: with a name, and with the tier's headers under its own.

    `url` is short for one, which has the tier's name.
    """
    if not tier.endpoints:
        return (Endpoint(name=tier.name, url=tier.url, socket=tier.socket, headers=tier.headers),)
    return tuple(
        structs.replace(
            endpoint,
            name=endpoint.name or _host_of(endpoint.url),
            headers=_over(endpoint.headers, tier.headers),
        )
        for endpoint in tier.endpoints
    )


def at_endpoint(tier: UpstreamTier, endpoint: Endpoint) -> UpstreamTier:
    """The tier as it would be with this (complete) endpoint alone."""
    alone: dict[str, Any] = {"url": endpoint.url, "socket": endpoint.socket, "headers": endpoint.headers}
    alone["prefill"] = tier.prefill or endpoint.prefill
    if not isinstance(endpoint.stream, UnsetType):
        alone["stream"] = endpoint.stream
    return structs.replace(tier, endpoints=[], **alone)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc or url
    except ValueError:
        return url


def _over(own: dict[str, Secret], under: dict[str, Secret]) -> dict[str, Secret]:
    taken = {name.lower() for name in own}
    return {name: value for name, value in under.items() if name.lower() not in taken} | own


class LocalTier(Frozen, frozen=True, tag_field="kind", tag="local"):
    """Ourselves: the local model and the local index. Always a route's last tier, for it always answers."""

    name: Name = "local"
    when_env: list[EnvName] = []
    """Only there when all these environment variables are set and not empty."""
    collections: dict[str, str] = {}
    """Caller's collection name -> local collection name, where they differ."""
    collection: str = "knowledge"
    """Where extractive answers are looked up when the prompt brings no context."""
    passages: Annotated[int, Meta(ge=1, le=50)] = 5
    """How many passages an extractive answer is drawn from."""
    sentences: Annotated[int, Meta(ge=1, le=10)] = 3
    """How many sentences an extractive answer has."""
    faults: list[PlannedFault] = []
    """What is broken on purpose, as if the local tier did it."""
    limit: Limit | UnsetType = UNSET


Tier = UpstreamTier | LocalTier


# --- routes --------------------------------------------------------------------------------------------------------


class Match(Frozen, frozen=True):
    """Which requests a route claims: those under a `prefix` or at a `path`, on any or one host and port."""

    prefix: str | None = None
    """On segment boundaries: `/v1` claims /v1 and /v1/x, not /v1x."""
    path: str | None = None
    """Exactly this path; it goes before any prefix."""
    host: str | None = None
    """The Host header's name, without a port, in any case of letters."""
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    """One of the ports that `server.listen` names."""
    strip: bool = False
    """Take the prefix off before the request is read and forwarded."""


MAIN_ARM = "main"
"""What a route's own tiers are called among its arms."""


class Arm(Frozen, frozen=True):
    """Other tiers that a route's calls may go to: a new version beside the one that serves."""

    tiers: Annotated[list[Tier], Meta(min_length=1)]
    """Who is asked, in this order, until one answers. Vectors of all must be in the route's own space."""


class Split(Frozen, frozen=True):
    """A sticky share of the calls goes to another arm. Raising the share keeps everybody in who was in."""

    arm: Name
    """The arm, one of the route's `arms`."""
    share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.0
    """The share of all keys that goes there."""
    keys: Annotated[list[SplitKey], Meta(min_length=1)] = field(
        default_factory=lambda: ["header:x-user-id", "body:user", "call"]
    )
    """What decides: the first of these that a call has. A call that has none stays with the route's own tiers."""
    salt: str = ""
    """Another salt draws anew, so that two experiments don't meet the same users; without it, the route's name."""
    fall_back: bool = True
    """Let the route's own tiers answer where the arm refuses or fails."""
    force: bool = False
    """Let callers choose with the header x-understudy-arm, for tests."""


class Shadow(Frozen, frozen=True):
    """A share of the reads is asked of another arm as well, after the caller was answered, and the two compared."""

    arm: Name
    """The arm, one of the route's `arms`."""
    share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.01
    """The share of embeddings and retrievals that is mirrored. Writes never are."""
    concurrent: Annotated[int, Meta(ge=1, le=256)] = 4
    """Shadows at once."""
    queue: Annotated[int, Meta(ge=0, le=4096)] = 64
    """Calls that may wait to be mirrored; more are dropped, and counted."""
    queue_bytes_max: Bytes = 8 * 1024 * 1024
    """What the bodies of those that wait may come to together."""
    deadline_s: PositiveSeconds = 10.0
    """Seconds a shadow may take."""
    generate_tokens_per_hour_max: Annotated[int, Meta(ge=0)] = 0
    """What mirrored LLM calls may cost: four bytes of prompt or answer are a token. 0: they are never mirrored."""


class Route(Frozen, frozen=True):
    """One leg of the application: what it claims, how it speaks, and who answers, in order.

    After reading, its policies are complete (laid over `defaults`) and `body_bytes_max` is set.
    """

    name: Name
    match: Match | Annotated[list[Match], Meta(min_length=1)]
    dialect: str
    """Whose wire format is spoken here; `plain` passes everything through untouched."""
    tiers: Annotated[list[Tier], Meta(min_length=1)]
    """Who is asked, in this order, until one answers."""
    space: str | None = None
    """The vector space of this route; without it, that of the first tier that is there."""
    body_bytes_max: Bytes | UnsetType = UNSET
    """The largest request body; without it, the server's."""
    outcomes: list[Outcome] = []
    """What the errors of this route's upstreams mean: rows put before the table's."""
    arms: dict[str, Arm] = {}
    """Name -> other tiers that `split` and `shadow` can name. The route's own tiers are the arm `main`."""
    split: Split | None = None
    shadow: Shadow | None = None
    watch: Watch | None = None
    mirror: Mirror | None = None
    faults: list[PlannedFault] = []
    """What is broken on purpose for this route's callers, whoever answers."""
    service_tier: ServiceTier | UnsetType = UNSET
    """What service tier this route is on; without it, by the server's rule."""
    objectives: Objectives = Objectives()
    shed: Shed = Shed()
    deadline: Deadline = Deadline()
    tokens: Tokens = Tokens()
    quota: Quota = Quota()
    retry: Retry = Retry()
    budget: Budget = Budget()
    hedge: Hedge = Hedge()
    balance: Balance = Balance()
    breaker: Breaker = Breaker()
    limit: Limit = Limit()
    ramp: Ramp = Ramp()
    stream: Streaming = Streaming()
    cache: Cache = Cache()
    coalesce: Coalesce = Coalesce()
    likeness: Likeness = Likeness()
    spaces: Spaces = Spaces()
    last_words: LastWords = LastWords()
    spend: Spend = Spend()

    @property
    def claims(self) -> tuple[Match, ...]:
        """`match` as what it always means: one or more claims."""
        return tuple(self.match) if isinstance(self.match, list) else (self.match,)

    @property
    def every_tier(self) -> tuple[tuple[str, Tier], ...]:
        """Each tier and the key it stands at, those of the arms behind the route's own."""
        own = [(f"tiers[{n}]", tier) for n, tier in enumerate(self.tiers)]
        others = [
            (f"arms.{name}.tiers[{n}]", tier) for name, arm in self.arms.items() for n, tier in enumerate(arm.tiers)
        ]
        return (*own, *others)


class Defaults(Frozen, frozen=True):
    """What routes inherit key by key unless they say otherwise."""

    objectives: Objectives = Objectives()
    shed: Shed = Shed()
    deadline: Deadline = Deadline()
    tokens: Tokens = Tokens()
    quota: Quota = Quota()
    retry: Retry = Retry()
    budget: Budget = Budget()
    hedge: Hedge = Hedge()
    balance: Balance = Balance()
    breaker: Breaker = Breaker()
    limit: Limit = Limit()
    ramp: Ramp = Ramp()
    stream: Streaming = Streaming()
    cache: Cache = Cache()
    coalesce: Coalesce = Coalesce()
    likeness: Likeness = Likeness()
    spaces: Spaces = Spaces()
    last_words: LastWords = LastWords()
    spend: Spend = Spend()


# --- files and folders ---------------------------------------------------------------------------------------------


class File(Frozen, frozen=True):
    """One policy file. `server`, `local`, `defaults`, `prices`, `outcomes` may each stand in one file of a folder."""

    server: Server | UnsetType = UNSET
    local: Local | UnsetType = UNSET
    defaults: Defaults | UnsetType = UNSET
    prices: Prices | UnsetType = UNSET
    outcomes: list[Outcome] = []
    """The table of what errors mean, instead of the one that ships."""
    routes: list[Route] = []


class Settings(Frozen, frozen=True):
    """A whole policy folder, as it was read in one environment.

    Tiers whose `when_env` was not met are kept in their routes, so that people can be shown what is missing, and are
    named in `inactive`; `proxy.stack` leaves them out.
    """

    server: Server = Server()
    local: Local = Local()
    prices: Prices = Prices()
    outcomes: list[Outcome] = []
    """The folder's own table of what errors mean; empty where it goes by the one that ships."""
    routes: tuple[Route, ...] = ()
    digest: str = ""
    """A hash over all the files, so that a log line can say which policies were live."""
    inactive: dict[str, dict[str, str]] = {}
    """Route name -> tier name -> why that tier is not there."""

    def active(self, route: Route) -> tuple[Tier, ...]:
        """The tiers of `route` that are there, in order."""
        missing = self.inactive.get(route.name, {})
        return tuple(tier for tier in route.tiers if tier.name not in missing)

    def space_of(self, route: Route) -> str:
        """The vector space of `route`: its own, else its first active tier's; '' where nobody says.

        A local tier's space is the local model's, named here as `local.model` names it.
        """
        if route.space:
            return route.space
        for tier in self.active(route)[:1]:
            return self.local.model if isinstance(tier, LocalTier) else tier.space or ""
        return ""


def inactive_reason(tier: Tier, environ: Mapping[str, str]) -> str | None:
    """Why `tier` is not there in this environment (`OPENAI_API_KEY is not set`), or None when it is."""
    missing = [name for name in tier.when_env if not environ.get(name)]
    if not missing:
        return None
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"


def active_tiers(route: Route, environ: Mapping[str, str]) -> tuple[Tier, ...]:
    """The tiers of `route` that are there in this environment, in order."""
    return tuple(tier for tier in route.tiers if inactive_reason(tier, environ) is None)
