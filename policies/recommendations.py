"""Say what to do about a failure or a risk: from a table of causes, and from what has helped here before.

    kinds of failure, features that rise, kinds of change --TABLE--> actions, each with its evidence
                                                                       |
              how often each was tried here, and helped --Beta mean--> the likeliest first

An action that recovery takes by itself (`policies.recovery` has its rungs) is named as it names it, so that what came
of it is counted; the others are for people, and stand in the order of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

COUNT_MAX = 3
BELIEF_TRIES = 4.0
"""The table's own word counts like so many tries."""


class Remedy(NamedTuple):
    """Against these causes, this action: why it may help (`evidence`), and how likely that is thought beforehand.

    `causes` are kinds of failure, names of `risk.FEATURES`, or kinds of change, these as `change:KIND`. `roles` are the
    roles of the components it is for; none means all.
    """

    causes: frozenset[str]
    action: str
    words: str
    evidence: str
    belief: float
    roles: frozenset[str] = frozenset()


class Recommendation(NamedTuple):
    """What to do, why, and how often it was tried here and helped."""

    action: str
    words: str
    evidence: str
    cause: str
    tried: int
    helped: int


def _remedy(causes: str, action: str, words: str, evidence: str, belief: float, roles: str = "") -> Remedy:
    return Remedy(frozenset(causes.split()), action, words, evidence, belief, frozenset(roles.split()))


TABLE = (
    _remedy(
        "change:policies change:endpoints change:split change:forced",
        "undo_change",
        "put the policies back as they were; a reload takes effect at once",
        "the rate of failures rose with that change",
        0.7,
    ),
    _remedy(
        "change:deploy change:version",
        "roll_back",
        "roll back what was deployed",
        "the rate of failures rose with that deploy",
        0.7,
    ),
    _remedy(
        "change:model change:system_fingerprint embedding_drift embedding_dimension embedding_norm quarantined",
        "pin_model",
        "pin the model's version at the provider, or declare a new revision of the space and embed again",
        "the service answers with another model than before",
        0.7,
        "embedding_service llm_service",
    ),
    _remedy(
        "change:server",
        "ask_provider",
        "look at the provider's status page: the service itself was changed",
        "its server or version header has changed",
        0.4,
    ),
    _remedy(
        "change:index change:collection retrieval_index",
        "reload_snapshot",
        "go back to the snapshot before",
        "the local index is another generation than before",
        0.5,
        "local_index",
    ),
    _remedy(
        "reset no_answer connect connect_timeout garbage truncated",
        "reset_pool",
        "close the connections to it and open new ones",
        "connections that a middlebox or a restart has killed fail until they are given up",
        0.5,
    ),
    _remedy(
        "dns connect connect_refused connect_timeout tls",
        "resolve_again",
        "ask DNS again for its address",
        "a service that has moved is looked for at its old address until then",
        0.5,
    ),
    _remedy(
        "no_answer connect connect_refused connect_timeout unavailable server_error overloaded rate_limit quota",
        "switch_endpoint",
        "send its calls to another endpoint or tier",
        "what is wrong with it need not be wrong with another of its kind",
        0.6,
        "vector_database embedding_service llm_service",
    ),
    _remedy(
        "rate_limit overloaded busy_share limit_fall",
        "lower_rate",
        "ask for less (`limit`, `tokens`), raise the quota at the provider, or let the cache answer more",
        "it says that it is busy, or its concurrency limit falls",
        0.5,
    ),
    _remedy("quota credentials", "renew_account", "renew its credentials or its quota", "it refuses our account", 0.8),
    _remedy(
        "pool_wait slow_ratio first_byte_slope",
        "widen_pool",
        "raise `connections_max`, or hedge reads to another endpoint",
        "calls wait for connections, or its slowest answers get slower",
        0.4,
    ),
    _remedy(
        "retrieval_lost retrieval_altered retrieval_empty retrieval_overlap retrieval_top_1 retrieval_scores stale",
        "restore_collection",
        "restore the collection from its backup or its mirror; the runbook says how",
        "it answers quickly and finds other points than its mirror",
        0.6,
        "vector_database",
    ),
    _remedy(
        "damaged checksum missing retrieval_index local_index",
        "rebuild_index",
        "build the local index anew from its store",
        "its files do not agree with their checksums",
        0.6,
        "local_index",
    ),
    _remedy(
        "cuda session out_of_memory memory_growth",
        "drop_cuda",
        "run the local model on the CPU",
        "its device or its memory fails, and the CPU does not",
        0.6,
        "local_model",
    ),
    _remedy(
        "memory_growth fd_share",
        "restart_sidecar",
        "restart the sidecar in its turn; nobody notices where there are several workers",
        "its own memory or its open files grow",
        0.5,
    ),
    _remedy(
        "loop_lag calls",
        "add_workers",
        "raise `server.workers`, or shed calls of low priority",
        "the event loop is late, or calls have become more",
        0.4,
    ),
    _remedy(
        "error_share budget_burn check_failures drift",
        "look_at_service",
        "look at the service before it fails: its logs, its load, its last deploy",
        "more of its answers are failures, or its checks are slow",
        0.3,
    ),
)


def recommended(
    causes: Iterable[str],
    role: str,
    record: Mapping[tuple[str, str], tuple[int, int]],
    count: int = COUNT_MAX,
) -> list[Recommendation]:
    """What to do about these causes at a component of this role, the most promising first.

    `record` is (cause, action) -> (times tried, times helped). What has helped here against the same cause, such as a
    hook of one's own, is recommended also where the table does not have it.
    """
    wanted = list(dict.fromkeys(causes))
    found: dict[str, tuple[float, Recommendation]] = {}
    for cause in wanted:
        for remedy in TABLE:
            if cause in remedy.causes and (not remedy.roles or role in remedy.roles):
                _take(found, _weighed(cause, remedy, record))
        for (tried_against, action), (_, helped) in record.items():
            if tried_against == cause and helped and action not in found:
                own = Remedy(frozenset({cause}), action, action.replace("_", " "), "it has helped here before", 0.3)
                _take(found, _weighed(cause, own, record))
    ranked = sorted(found.values(), key=lambda each: -each[0])
    return [one for _, one in ranked[:count]]


def _weighed(
    cause: str, remedy: Remedy, record: Mapping[tuple[str, str], tuple[int, int]]
) -> tuple[float, Recommendation]:
    tried, helped = record.get((cause, remedy.action), (0, 0))
    promise = (helped + BELIEF_TRIES * remedy.belief) / (tried + BELIEF_TRIES)
    return promise, Recommendation(remedy.action, remedy.words, remedy.evidence, cause, tried, helped)


def _take(found: dict[str, tuple[float, Recommendation]], one: tuple[float, Recommendation]) -> None:
    action = one[1].action
    if action not in found or found[action][0] < one[0]:
        found[action] = one


def in_words(one: Recommendation) -> str:
    """A recommendation in a line."""
    here = f"; helped {one.helped} of {one.tried} times here" if one.tried else ""
    return f"{one.words} ({one.evidence}{here})"
