"""What a policy folder means: frozen, typed values, believed once.

YAML files -> plain values with the spot each came from -> defaults laid under -> these types. `proxy.reading` does
the reading and finds every fault; the rest of the program sees only what is defined here.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

Seconds = Annotated[float, Meta(ge=0, description="seconds")]
PositiveSeconds = Annotated[float, Meta(gt=0, description="seconds")]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1, description="bytes")]
Share = Annotated[float, Meta(gt=0, le=1, description="a share of one")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="lower case, up to 63 characters")]


class Secret(str):
    """A string that does not print: logs, errors, `explain` and `/status` show `***`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """The value itself, for the one place that sends it."""
        return str.__str__(self)


class Frozen(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every settings type is: immutable, keyword-only, and strict about keys."""


# --- policies: what a route or a tier may say about each; the defaults suit a sidecar's low traffic ----------------


class Deadline(Frozen):
    """How long a call may take, and how much of that is kept back for the tiers after the one being asked."""

    total_s: PositiveSeconds = 30.0
    reserve_s: Seconds = 1.0


class Retry(Frozen):
    """Ask the same tier again: attempts in all (1: never again), full jitter between 0 and base * 2**n, capped."""

    attempts: Annotated[int, Meta(ge=1, le=5)] = 2
    base_s: Seconds = 0.05
    wait_s_max: Seconds = 1.0


class Breaker(Frozen):
    """When to stop asking a tier that keeps failing, and how to come back."""

    enabled: bool = True
    consecutive: Count = 5
    ratio: Share = 0.5
    window_s: PositiveSeconds = 30.0
    calls_min: Count = 10
    open_s: PositiveSeconds = 5.0
    open_s_max: PositiveSeconds = 60.0
    permits: Count = 3
    probing_s_max: PositiveSeconds = 30.0


class Limit(Frozen):
    """A bulkhead: how many calls at once, how many may wait, and for how long."""

    concurrent: Count = 256
    queue: Annotated[int, Meta(ge=0)] = 256
    wait_s_max: Seconds = 0.1


# --- tiers ---------------------------------------------------------------------------------------------------------


class Tls(Frozen):
    """How to trust an https upstream."""

    verify: bool = True
    ca_file: str | None = None
    server_name: str | None = None


class UpstreamTier(Frozen, tag_field="kind", tag="upstream"):
    """A service behind us, by base URL. `headers` are set on every request, over the caller's own."""

    name: Name
    url: str
    when_env: list[str] = []
    """Only there when all these environment variables are set and not empty."""
    space: str | None = None
    """The vector space this tier embeds into or searches in, where it differs from the route's."""
    headers: dict[str, Secret] = {}
    connect_s: PositiveSeconds = 2.0
    first_byte_s: PositiveSeconds = 30.0
    """From the request's last byte to the answer's first content."""
    idle_s: PositiveSeconds = 60.0
    """The longest silence between two pieces of a body."""
    connections_max: Count = 256
    held_bytes_max: Bytes = 8 * 1024 * 1024
    """How much of an answer is held back to see it whole before it is passed on; longer ones are streamed."""
    tls: Tls = Tls()
    retry: Retry | UnsetType = UNSET
    breaker: Breaker | UnsetType = UNSET
    limit: Limit | UnsetType = UNSET


class LocalTier(Frozen, tag_field="kind", tag="local"):
    """Ourselves: the local model and the local index."""

    name: Name = "local"
    when_env: list[str] = []
    collections: dict[str, str] = {}
    """Caller's collection name -> local collection name, where they differ."""
    collection: str = "knowledge"
    """Where extractive answers are looked up when the prompt brings no context."""
    passages: Annotated[int, Meta(ge=1, le=50)] = 5
    sentences: Annotated[int, Meta(ge=1, le=10)] = 3
    limit: Limit | UnsetType = UNSET


Tier = UpstreamTier | LocalTier


# --- routes --------------------------------------------------------------------------------------------------------


class Match(Frozen):
    """Which requests a route claims: any of `prefix` (on segment boundaries) or `path` (exact), on a host and port."""

    prefix: str | None = None
    path: str | None = None
    host: str | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    strip: bool = False
    """Take the prefix off before the request is read and forwarded."""


class Route(Frozen):
    """One leg of the application: what it claims, how it speaks, and who answers, in order."""

    name: Name
    match: Match | list[Match]
    dialect: str
    tiers: Annotated[list[Tier], Meta(min_length=1)]
    space: str | None = None
    body_bytes_max: Bytes | UnsetType = UNSET
    deadline: Deadline = Deadline()
    retry: Retry = Retry()
    breaker: Breaker = Breaker()
    limit: Limit = Limit()


class Defaults(Frozen):
    """What routes inherit unless they say otherwise."""

    deadline: Deadline = Deadline()
    retry: Retry = Retry()
    breaker: Breaker = Breaker()
    limit: Limit = Limit()


# --- the sidecar itself --------------------------------------------------------------------------------------------


class Limits(Frozen):
    """The bound on everything a caller can make us hold."""

    head_bytes_max: Bytes = 64 * 1024
    headers_max: Count = 128
    target_bytes_max: Bytes = 16 * 1024
    body_bytes_max: Bytes = 32 * 1024 * 1024
    connections_max: Count = 4096
    pipelined_max: Count = 16
    write_buffer_bytes_max: Bytes = 256 * 1024
    head_s: PositiveSeconds = 15.0
    body_s: PositiveSeconds = 60.0
    idle_s: PositiveSeconds = 75.0


class Server(Frozen):
    """Where the sidecar listens, and how it behaves as a process."""

    listen: str | list[str] = "127.0.0.1:8787"
    admin: str = "127.0.0.1:8788"
    limits: Limits = Limits()
    access_log: bool = True
    drain_s: Seconds = 25.0
    reload_s: PositiveSeconds = 1.0
    """How often the policy files are looked at."""


class Local(Frozen):
    """The local model and the local indexes."""

    model: str = "all-MiniLM-L6-v2"
    """The embedded default, or the path of a folder with an understudy-model.yaml."""
    provider: Annotated[str, Meta(pattern="^(auto|cpu|cuda)$")] = "auto"
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    queue_texts_max: Count = 512
    knowledge: bool | list[str] = True
    """What is indexed as `knowledge` at first start: our own operating handbook, nothing, or these files."""


class File(Frozen):
    """One policy file. `server`, `local` and `defaults` may each stand in one file of a folder."""

    server: Server | UnsetType = UNSET
    local: Local | UnsetType = UNSET
    defaults: Defaults | UnsetType = UNSET
    routes: list[Route] = []


class Settings(Frozen):
    """A whole policy folder. Tiers whose `when_env` is not met are kept here, and left out by `proxy.stack`."""

    server: Server = Server()
    local: Local = Local()
    routes: tuple[Route, ...] = ()
    digest: str = ""
    """A hash over all the files, so that a log line can say which policies were live."""
