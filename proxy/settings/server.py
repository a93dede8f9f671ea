"""How the sidecar itself is set up: where it listens, and what callers can make it hold."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from understudy.proxy.settings.alert import Alerts
from understudy.proxy.settings.cache import SharedCache
from understudy.proxy.settings.health import Health
from understudy.proxy.settings.journal import Journal
from understudy.proxy.settings.overload import Shedding
from understudy.proxy.settings.questions import Questions
from understudy.proxy.settings.recovery import Hook as Hook
from understudy.proxy.settings.recovery import Recovery
from understudy.proxy.settings.replica import Replicas
from understudy.proxy.settings.spaces import DeclaredSpace, Ledger
from understudy.proxy.settings.trace import Traces
from understudy.proxy.settings.types import Bytes, Count, FilePath, Frozen, PositiveSeconds, Seconds


class Limits(Frozen, frozen=True):
    """The bound on everything a caller can make us hold."""

    head_bytes_max: Bytes = 64 * 1024
    headers_max: Count = 128
    """How many headers a request may have."""
    target_bytes_max: Bytes = 16 * 1024
    body_bytes_max: Bytes = 32 * 1024 * 1024
    connections_max: Count = 4096
    pipelined_max: Count = 16
    """Requests a connection may send before the first is answered."""
    write_buffer_bytes_max: Bytes = 256 * 1024
    """Bytes kept for a caller who reads slowly before the source is asked to pause."""
    unsent_bytes_max: Bytes = 256 * 1024 * 1024
    """Bytes kept for all callers who read slowly together; beyond it, the one who has been slow for longest is cut."""
    head_s: PositiveSeconds = 15.0
    """Seconds a request's head may take to arrive."""
    body_s: PositiveSeconds = 60.0
    """Seconds without any of a request's body, and seconds all of it may take; what has come buys more time."""
    body_bytes_per_s_min: Count = 500
    """Bytes of a body that buy it one more second, so that one that drips is not waited for."""
    read_bytes_per_s_min: Count = 500
    """Bytes taken of an answer, our buffer for it being full, that buy its reader one more second beyond idle_s."""
    idle_s: PositiveSeconds = 75.0
    """Seconds a connection may stay without a request."""
    tunnel_idle_s: PositiveSeconds = 300.0
    """Seconds a WebSocket may be silent in both directions."""


class ServerTls(Frozen, frozen=True):
    """TLS for callers. The files are watched: what replaces them is in force for who connects from then on, and what
    can't be used leaves the old ones in force, with a fault as a bad policy file has."""

    cert_file: FilePath
    """Our certificate in PEM, and behind it those that lead to the authority."""
    key_file: FilePath | None = None
    """Its private key in PEM, without a passphrase; not needed where it stands in cert_file."""
    client_ca_file: FilePath | None = None
    """The authorities, in PEM, whose certificates callers must show (mTLS)."""
    client: Literal["require", "optional"] = "require"
    """With a client_ca_file: whether callers without a certificate are let in. A wrong one is refused either way."""
    min_version: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    listen: list[str] = []
    """The addresses of server.listen where TLS is spoken, written as there; unless said, all but Unix sockets."""


class Server(Frozen, frozen=True):
    """Where the sidecar listens, and how it behaves as a process."""

    listen: str | Annotated[list[str], Meta(min_length=1)] = "127.0.0.1:8787"
    """host:port or [v6]:port, one or several; port 0 takes a free one. Behind the first, unix:/path as well."""
    tls: ServerTls | UnsetType = UNSET
    admin: str = "127.0.0.1:8788"
    """Where health, metrics and status are served."""
    zone: str | None = None
    """Where this sidecar is: endpoints of the same zone are asked before others. Mostly `${ZONE:-}`, from outside."""
    forwarded: Literal["keep", "append"] = "keep"
    """What upstreams are told of the caller in X-Forwarded-*: what it wrote itself, or its address as well."""
    trace: Literal["keep", "make"] = "make"
    """A W3C traceparent is carried on; a call that comes without one is given one, or goes without."""
    traces: Traces | UnsetType = UNSET
    """Where spans of calls are sent; without it there are none."""
    limits: Limits = Limits()
    shed: Shedding = Shedding()
    cache: SharedCache = SharedCache()
    ledger: Ledger = Ledger()
    spaces: dict[str, DeclaredSpace] = {}
    """What the vector spaces are that routes and tiers name; one that is only named is known by its name."""
    questions: Questions = Questions()
    alerts: Alerts = Alerts()
    journal: Journal = Journal()
    recovery: Recovery = Recovery()
    health: Health = Health()
    replicas: Replicas = Replicas()
    access_log: bool = True
    """One line for every call."""
    drain_s: Seconds = 25.0
    """How long calls in flight may take to finish when the sidecar is told to stop."""
    reload_s: PositiveSeconds = 1.0
    """How often the policy files are looked at."""
    workers: Annotated[int, Meta(ge=1, le=64)] | Literal["auto"] = 1
    """Processes that answer side by side, kept alive by a parent; auto is one for each core. 1 is a single process."""
    faults: bool = False
    """Let the faults that routes and tiers plan befall calls. UNDERSTUDY_FAULTS=on in the environment does the same."""
    reuse_port: bool = False
    """Let the next `understudy run` on the same addresses take them over, without a refused connection, and drain us.
    More than one worker always allows it. A parent process is run for it, with one worker too."""
