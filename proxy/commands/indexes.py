"""Commands on local collections: `index build|search|list|verify`."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.proxy.cli import NOT_WELL, WELL, Complaint, add_policies, state_folder
from understudy.proxy.knowledge import KNOWLEDGE, collections_folder, keep_as_built_by_hand, models_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from understudy.models.embedder import Embedder

Groups = Any  # argparse names the type of add_subparsers() only privately
BUILD_EXAMPLES = """\
examples:
  understudy index build docs/                       the collection `knowledge`, which extractive answers quote from
  understudy index build faq.jsonl --name faq        one passage a line: {"text": …, "title"?, "source"?, "id"?, …}

A running sidecar serves the new generation within a few seconds.
"""
DEFAULT_MODEL = "all-MiniLM-L6-v2"


def add_to(groups: Groups) -> None:
    """Add this module's commands to the command line."""
    index = groups.add_parser("index", help="build, search and verify local collections")
    verbs = index.add_subparsers(dest="verb", metavar="VERB", required=True)

    build = verbs.add_parser(
        "build",
        help="make a collection of Markdown, text and JSONL files and folders",
        epilog=BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("paths", nargs="+", metavar="FILES")
    build.add_argument("--name", default="knowledge", help="the collection's name (default: knowledge)")
    add_common(build, build_index)

    search = verbs.add_parser("search", help="search a collection by meaning and by words")
    search.add_argument("words", nargs="+", metavar="QUESTION")
    search.add_argument("--name", default="knowledge")
    search.add_argument("-k", type=int, default=5, help="how many passages (default 5)")
    add_common(search, search_index)

    add_common(verbs.add_parser("list", help="list the collections"), list_indexes)
    verify = verbs.add_parser("verify", help="check a collection on disk, byte by byte")
    verify.add_argument("--name", default="knowledge")
    add_common(verify, verify_index)

    sync = verbs.add_parser("sync", help="copy the collections behind a route that has a `mirror:`, or compare them")
    sync.add_argument("route", metavar="ROUTE")
    sync.add_argument(
        "--collection", action="append", default=[], metavar="NAME", help="only this one; may be repeated"
    )
    sync.add_argument(
        "--points-per-s", type=float, metavar="N", help="read so fast at most, instead of as the policy says"
    )
    sync.add_argument(
        "--prune", action="store_true", help="drop what the database lacks, though it be most of the copy"
    )
    add_policies(sync)
    add_common(sync, sync_copies)


def add_common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """The arguments that every command on local models and collections takes, and what it runs."""
    parser.add_argument("--state", metavar="DIR", help="state folder (or UNDERSTUDY_STATE)")
    parser.add_argument("--model", default=os.environ.get("UNDERSTUDY_MODEL", DEFAULT_MODEL))
    parser.set_defaults(run=run)


@contextmanager
def complaining() -> Generator[None]:
    """What models and indexes say is wrong becomes a Complaint."""
    from understudy.indexes.faults import IndexFault
    from understudy.models.errors import ModelError

    try:
        yield
    except (IndexFault, ModelError) as fault:
        raise Complaint(str(fault), NOT_WELL) from None
    except OSError as error:
        raise Complaint(f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")) from None


def embedder_of(arguments: argparse.Namespace) -> Embedder:
    """The model that the command names, loaded and tested."""
    from understudy.models.embedder import load

    return load(arguments.model, models_folder(state_folder(arguments, os.environ)))


def _collections(arguments: argparse.Namespace) -> Path:
    return collections_folder(state_folder(arguments, os.environ))


def build_index(arguments: argparse.Namespace) -> int:
    """Make a collection, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from understudy.indexes.build import build

    with complaining():
        embedder = embedder_of(arguments)
        folder = _collections(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("embedding", total=None)
            report = build(
                folder,
                arguments.name,
                [Path(each) for each in arguments.paths],
                lambda texts: embedder.embed(texts, "document"),
                embedder.space.name,
                embedder.space.dimensions,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        if arguments.name == KNOWLEDGE:
            keep_as_built_by_hand(folder)
    sys.stdout.write(
        f"{report.name}: {report.passages} passages ({report.embedded} embedded, {report.reused} known) "
        f"in {report.wall_s:.1f} s, {report.generation}\n"
    )
    return WELL


def sync_copies(arguments: argparse.Namespace) -> int:
    """Copy the collections behind a route."""
    from understudy.proxy.mirroring.command import sync

    with complaining():
        return sync(arguments)


def search_index(arguments: argparse.Namespace) -> int:
    """Print the best passages; 1 when there are none."""
    from understudy.indexes.library import Library

    question = " ".join(arguments.words)
    with complaining():
        collection = Library(_collections(arguments)).open(arguments.name)
        embedder = embedder_of(arguments)
        hits = collection.search_fused(embedder.embed([question])[0], question, arguments.k)
    for hit in hits:
        text = " ".join(hit.text.split())
        sys.stdout.write(f"{hit.score:.3f}  {hit.source}\n       {text[:300]}\n")
    return WELL if hits else NOT_WELL


def list_indexes(arguments: argparse.Namespace) -> int:
    """Print the collections on disk."""
    from understudy.indexes.library import Library

    with complaining():
        library = Library(_collections(arguments))
        for name in library.names():
            collection = library.open(name)
            sys.stdout.write(f"{name}: {collection.count} points, {collection.dimensions} d, {collection.space}\n")
    return WELL


def verify_index(arguments: argparse.Namespace) -> int:
    """Print what is wrong with a collection; 1 when something is."""
    from understudy.indexes.build import verify

    with complaining():
        findings = verify(_collections(arguments), arguments.name)
    for finding in findings:
        sys.stdout.write(f"{finding.generation}: {finding.what}{' (fatal)' if finding.fatal else ''}\n")
    if not findings:
        sys.stdout.write(f"{arguments.name}: well\n")
    return NOT_WELL if findings else WELL
