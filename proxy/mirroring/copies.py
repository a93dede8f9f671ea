"""What a sidecar has of mirrors: nothing until a policy asks for one, and no numpy for it in workers without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.policies.chain import Link
from understudy.policies.service import Service
from understudy.proxy.dialects import DIALECTS
from understudy.proxy.handles import Handles
from understudy.proxy.settings.settings import Route, Settings
from understudy.proxy.stack import RouteParts
from understudy.proxy.tiers.knowing import Knowing, Shelf, Watched

if TYPE_CHECKING:
    from understudy.proxy.mirroring.mirrors import Mirrors


class Copies:
    """One process's mirrors, made when they are first asked for. `links` are the tiers of a route that is in force."""

    def __init__(self, state: Path, knowing: Knowing, links: Callable[[str], Sequence[Link]]) -> None:
        self._state = state
        self._knowing = knowing
        self._links = links
        self.mirrors: Mirrors | None = None

    def tap_of(self, settings: Settings, route: Route, handles: Handles | None) -> Callable[[Service], Service] | None:
        """What has a route's mirror see its writes; None where it has none."""
        if route.mirror is None:
            return None
        if self.mirrors is None:
            from understudy.proxy.mirroring.mirrors import Mirrors

            self.mirrors = Mirrors(self._state, self._knowing.shelf, links=self._links)
        return self.mirrors.of_route(route, DIALECTS[route.dialect], settings, handles).tapped

    def adopt(self, routes: Mapping[str, RouteParts]) -> None:
        """Run the mirrors of the routes that are in force, and no others."""
        if self.mirrors is not None:
            self.mirrors.adopt(name for name, parts in routes.items() if parts.route.mirror is not None)

    def watch(self, shelf: Shelf) -> Watched | None:
        """The local collections for one call, which notes how stale they are; None where none is a copy."""
        return None if self.mirrors is None else self.mirrors.watching(shelf)

    def is_behind(self, local: str) -> bool:
        """Whether a local collection is a copy of which more is known than that it is what its database has."""
        held = [kept.mirror.held.get(local) for kept in self.mirrors.running.values()] if self.mirrors else []
        standings = [one.standing for one in held if one is not None]
        return any(not one.whole or bool(one.behind_since or one.points_behind) for one in standings)

    async def stop(self) -> None:
        """Let go of everything."""
        if self.mirrors is not None:
            await self.mirrors.stop()
