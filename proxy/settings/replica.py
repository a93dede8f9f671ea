"""What the policy files say about replicas of a sidecar."""

from __future__ import annotations

from understudy.proxy.settings.types import Frozen, Name


class Replicas(Frozen, frozen=True):
    """What several sidecars with the same policies tell each other, through the Redis of `server.cache.url`. Nothing
    depends on its being there; with another second level, or none, nothing is shared."""

    share: bool = True
    """Tell the others which breakers live calls have opened, and heed what they tell as hints; what happened to each
    stands in all their journals."""
    name: Name | None = None
    """What the others call this one; without it, its host's name and a number of its own. It must be its own."""
