"""`understudy index sync ROUTE`: copy the collections behind a route now, with a progress bar.

nobody keeps the route's copies --> copy here, in this process
a running sidecar keeps them    --> ask it to, and watch how far it has come
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.policies.mirror import Standing
from understudy.proxy.cli import NOT_WELL, WELL, Complaint, environ_of, policies_folder, state_folder
from understudy.proxy.knowledge import collections_folder
from understudy.proxy.settings.reading import BadPolicies, read_folder
from understudy.proxy.settings.settings import Route, Settings

if TYPE_CHECKING:
    from understudy.proxy.mirroring.mirror import Mirror
    from understudy.proxy.mirroring.mirrors import Kept

POLL_S = 0.2
ATTEMPTS_MAX = 3
"""How often somebody who waits at a terminal asks a database that does not answer for what it has."""
Progress = Callable[[str, int, int, int], None]


def sync(arguments: argparse.Namespace) -> int:
    """Copy; 1 when a collection could not be."""
    settings, route = _route(arguments)
    state = state_folder(arguments, os.environ)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}
        began: dict[str, float] = {}

        def progress(local: str, seen: int, total: int, _changed: int) -> None:
            now = bars.get_time()
            if local not in tasks:
                began[local] = now
                tasks[local] = bars.add_task(local, total=total, rate="")  # pyright: ignore[reportArgumentType]
            rate = f"{seen / max(now - began[local], 0.001):.0f}/s"
            bars.update(tasks[local], completed=seen, total=total, rate=rate)  # pyright: ignore[reportArgumentType]

        results = asyncio.run(_synced(arguments, settings, route, state, progress))
    for line in results:
        sys.stdout.write(line.text + "\n")
    return WELL if all(line.well for line in results) else NOT_WELL


class Line:
    """What became of one collection."""

    def __init__(self, text: str, *, well: bool) -> None:
        self.text = text
        self.well = well


def _route(arguments: argparse.Namespace) -> tuple[Settings, Route]:
    from understudy.proxy.dialects import KINDS

    reading = read_folder(policies_folder(arguments, os.environ), environ_of(arguments), KINDS)
    if reading.settings is None:
        raise Complaint(str(BadPolicies(reading.faults)), NOT_WELL)
    routes = {route.name: route for route in reading.settings.routes}
    route = routes.get(arguments.route)
    if route is None:
        raise Complaint(f"there is no route {arguments.route!r}; there are: {', '.join(routes) or 'none'}", NOT_WELL)
    if route.mirror is None:
        raise Complaint(
            f"route {route.name} has no `mirror:`, so nothing says how its collections are copied", NOT_WELL
        )
    missing = reading.settings.inactive.get(route.name, {})
    from understudy.proxy.mirroring.mirrors import primary_of

    if (why := missing.get(primary_of(route, reading.settings).name)) is not None:
        raise Complaint(f"the database of route {route.name} is not there: {why}", NOT_WELL)
    return reading.settings, route


async def _synced(
    arguments: argparse.Namespace, settings: Settings, route: Route, state: Path, progress: Progress
) -> Sequence[Line]:
    from understudy.indexes.library import Library
    from understudy.proxy.dialects import DIALECTS, naming_of
    from understudy.proxy.handles import Handles
    from understudy.proxy.mirroring.mirrors import Mirrors

    library = Library(collections_folder(state))
    library.folder.mkdir(parents=True, exist_ok=True)
    handles = Handles(state / "handles" / f"{route.name}.jsonl") if naming_of(route.dialect) else None
    mirrors = Mirrors(state, lambda: library)
    try:
        kept = mirrors.of_route(route, DIALECTS[route.dialect], settings, handles)
        if kept.mirror.notes.keep():
            return await _here(arguments, kept, progress)
        return await _there(arguments, kept, progress)
    finally:
        await mirrors.stop()


async def _here(arguments: argparse.Namespace, kept: Kept, progress: Progress) -> list[Line]:
    mirror = kept.mirror
    mirror.read()
    mirror.lane.start()
    keeper = kept.keeping(progress=progress, prune=arguments.prune, points_per_s=arguments.points_per_s)
    try:
        names = await _wanted(arguments, mirror, kept)
        lines: list[Line] = []
        for name in names:
            local = mirror.renamed.get(name, name)
            why = await keeper.sync(local, name)
            copy = mirror.stock().get(local)
            count = 0 if copy is None else copy.count
            lines.append(Line(f"{name}: {count} points" if not why else f"{name}: {why}", well=not why))
        return lines
    finally:
        await keeper.walker.source.close()
        await mirror.stop()


async def _wanted(arguments: argparse.Namespace, mirror: Mirror, kept: Kept) -> list[str]:
    from understudy.proxy.mirroring.source import SourceFailed

    # a walk that has begun is worth some patience; that nobody is there is told at once
    source = kept.keeping(attempts_max=ATTEMPTS_MAX).walker.source
    try:
        there = await source.collections()
    except SourceFailed as why:
        raise Complaint(f"the database of route {mirror.name}: {why}", NOT_WELL) from None
    finally:
        await source.close()
    for described in there:
        mirror.learn(described)
    if arguments.collection:
        mirror.wanted |= set(arguments.collection)
        return list(arguments.collection)
    return [described.name for described in there if mirror.mirrors(described.name)]


async def _there(arguments: argparse.Namespace, kept: Kept, progress: Progress) -> list[Line]:
    """Ask the process that keeps the copies, and watch it."""
    mirror, loop = kept.mirror, asyncio.get_running_loop()
    if arguments.prune or arguments.points_per_s:
        raise Complaint("a running sidecar keeps these copies: its policy says how fast; stop it to prune", NOT_WELL)
    mirror.read()
    names: list[str] = list(arguments.collection) or [held.called for held in mirror.held.values()]
    pending: dict[str, str] = {mirror.renamed.get(name, name): name for name in names}
    for local, name in pending.items():
        mirror.notes.leave_note("sync", local, name)
    lines: list[Line] = []
    while pending:
        await asyncio.sleep(POLL_S)
        # before how they stand is read, which the keeper writes down before it takes a note away
        done = {local for local in pending if not mirror.notes.has_note("sync", local)}
        await loop.run_in_executor(None, mirror.read)
        for local, name in list(pending.items()):
            note = await loop.run_in_executor(None, mirror.notes.walk_seen, local)
            if note is not None:
                progress(local, note.seen, max(note.total, note.seen), note.changed)
            held = mirror.held.get(local)
            refused = held.refused if held is not None else ""
            if local not in done and not refused:
                continue
            del pending[local]
            standing = held.standing if held is not None else Standing()
            why = refused or (standing.why if not standing.whole or standing.behind_since else "")
            lines.append(Line(f"{name}: {why or 'compared with the database, and the same'}", well=not why))
    return lines
