"""What the policy files say of watching: how services that answer, and answer wrongly, are found out."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from understudy.proxy.settings.types import Frozen, Seconds


class Watch(Frozen, frozen=True):
    """Find out a primary that answers quickly and wrongly: drifted vectors, lost points, a rotten index.

    A route for retrieval needs a local tier with a copy of its collections, which its searches are compared with; of a
    route for embeddings some fixed texts are embedded again now and then.
    """

    share: Annotated[float, Meta(ge=0, le=1, description="a share of one")] = 0.01
    """The share of searches that is asked of the local tier as well, after the caller was answered, and compared. Of
    embeddings it is the share that is looked at, to learn how this application asks for them."""
    goldens_s: Seconds = 45.0
    """How often what is known to be right is asked again: fixed texts, or searches as callers have made them. 0: never.
    """
    doubt: Literal["off", "report", "answer"] = "report"
    """A search that the primary answers with no point, or with less than half of those asked for, is asked of the local
    tier as well. report: afterwards, and only said; answer: at once, and the caller gets the copy's points where it has
    more and is not behind."""
