"""The prompter has the words ready before anybody needs them: questions that were foreseen, sentences that are quoted.

policies read ──> foreseen_of(route)      the files of answers, believed again: they may have changed since
model loaded  ──> begin                   embeds the foreseen questions, and goes round the quoted collections
policies swapped ──> embed                what is new among the questions
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path

from understudy.policies.last_words import Foreseen
from understudy.proxy.caching.answer_files import fingerprint_of, read_answers
from understudy.proxy.dialects import KINDS
from understudy.proxy.parts import RouteParts
from understudy.proxy.settings.certificates import fingerprint
from understudy.proxy.settings.reading import BadPolicies, Fault, Reading
from understudy.proxy.settings.settings import LocalTier, Route, ServerTls, Settings
from understudy.proxy.tiers.knowing import Knowing
from understudy.proxy.tiers.sentences import Sentences, keep_sentences

__all__ = ["Named", "Prompter", "compares_questions", "foreseen_of", "named_files", "print_of"]

Named = tuple[ServerTls | None, tuple[str, ...]]
"""The files that policies name: certificates, and answers."""


class Prompter:
    """One process's, beside what is known locally. `tasks` are its work under way, to be cancelled at the end."""

    def __init__(self, knowing: Knowing, state: Path) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._knowing = knowing
        self._sentences = knowing.sentences = Sentences(state / "sentences", clock=time.monotonic)

    @property
    def sentences(self) -> int:
        """How many sentences have a vector that is kept."""
        return self._sentences.count

    def begin(self, settings: Callable[[], Settings], routes: Iterable[RouteParts]) -> None:
        """The local model is there, or will never be."""
        self.embed(routes)
        self._spawn(keep_sentences(self._sentences, self._knowing, lambda: quoted_collections(settings())))

    def embed(self, routes: Iterable[RouteParts]) -> None:
        """Have the questions that were foreseen embedded, where the model is there."""
        for parts in routes if self._knowing.ready else ():
            if parts.last_words is not None:
                self._spawn(parts.last_words.warm_up())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def foreseen_of(route: Route) -> Foreseen | None:
    """What the route's files of answers hold; None where it names none. Raises BadPolicies."""
    paths = route.last_words.answers
    if not paths:
        return None
    try:
        entries, faults = read_answers(paths)
    except (OSError, ValueError) as error:
        raise BadPolicies((Fault(paths[0], 1, 1, "", f"can't be read: {error}"),)) from None
    if faults:
        raise BadPolicies(tuple(faults))
    return Foreseen(entries)


def compares_questions(route: Route) -> bool:
    """Whether a route's questions are compared by the local model's vectors, whoever answers them."""
    words = route.last_words
    asked_for = route.likeness.mode != "off" or (bool(words.answers) and words.cosine_min is not None)
    return KINDS[route.dialect] == "generate" and asked_for


def quoted_collections(settings: Settings) -> list[str]:
    """The collections that extractive answers quote from."""
    routes = [route for route in settings.routes if KINDS[route.dialect] == "generate"]
    tiers = [tier for route in routes for _, tier in route.every_tier if isinstance(tier, LocalTier)]
    return [tier.collections.get(tier.collection, tier.collection) for tier in tiers]


def named_files(reading: Reading) -> Named:
    """The files that a reading's policies name, in force or not."""
    return reading.tls, reading.answers


def print_of(named: Named) -> str:
    """What changes when one of the files does. May run in a thread."""
    tls, answers = named
    return fingerprint(tls) + (fingerprint_of(answers) if answers else "")
