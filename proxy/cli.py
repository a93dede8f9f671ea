"""The `understudy` command: run the sidecar, look at its policies, and keep its local tier.

Exit codes: 0 well, 1 the thing asked about is not well (faults, no such route, not ready), 2 the command itself was
wrong or could not be carried out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import understudy.policies
from understudy.proxy.version import VERSION, how_it_runs

if TYPE_CHECKING:
    from rich.console import Console

WELL, NOT_WELL, WRONG = 0, 1, 2
WIDTH = 120
POLICIES_HELP = "policy folder (or UNDERSTUDY_POLICIES; default: as shipped)"
PLUGINS = "understudy.commands"
"""The entry points that are commands."""
EXAMPLES = """\
examples:
  understudy run                                     start with the policies that ship
  understudy run --policies ./policies               start with your own
  understudy status                                  what fires, what is ill, who answers instead
  understudy check ./policies                        every fault, as file:line:col: key: why
  understudy explain POST /v1/chat/completions       what happens to such a call, and where that is written
  eval "$(understudy env)"                           point this shell's applications at the sidecar
  understudy exec -- python app.py                   run one application with that environment
  understudy index build docs/*.md --name handbook   give the local tier something to quote from
"""


class Complaint(Exception):
    """What went wrong, in words for the terminal; never a traceback."""

    def __init__(self, message: str, code: int = WRONG) -> None:
        super().__init__(message)
        self.code = code


def shipped_policies() -> Path:
    """The folder of the policies that ship with the package."""
    return Path(understudy.policies.__path__[0])


def state_folder(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Where index, models and journal live: --state, UNDERSTUDY_STATE, or the user's own state folder."""
    given = getattr(arguments, "state", None) or environ.get("UNDERSTUDY_STATE")
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "understudy"


def policies_folder(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Whose policies: the command's own argument, UNDERSTUDY_POLICIES, or those that ship."""
    given = getattr(arguments, "policies", None) or environ.get("UNDERSTUDY_POLICIES")
    return Path(given) if given else shipped_policies()


def environ_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The environment policies are read in: the process's, with --listen and --admin laid over it."""
    environ = dict(os.environ)
    for flag, name in (("listen", "UNDERSTUDY_LISTEN"), ("admin", "UNDERSTUDY_ADMIN")):
        value = getattr(arguments, flag, None)
        if value:
            environ[name] = value
    return environ


Command = Callable[[argparse.Namespace], int]
Groups = Any
"""What commands are added to; argparse names the type of add_subparsers() only privately."""


def console() -> Console:
    """Where tables are printed. A file or a pipe has no width of its own, and gets one in which no row breaks."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH)


def add_policies(parser: argparse.ArgumentParser) -> None:
    """Let a command be told whose policies it is about."""
    parser.add_argument("--policies", metavar="DIR", help=POLICIES_HELP)


def parser(word: str = "") -> argparse.ArgumentParser:
    """The command line, with every subcommand's own help; of `run` alone where that is the word, which then starts
    sooner and holds less memory for as long as it runs."""
    from understudy.proxy.commands import run

    top = argparse.ArgumentParser(
        prog="understudy",
        description="A sidecar proxy for RAG applications that answers when the services behind it can't.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"understudy {VERSION}, {how_it_runs()}")
    groups = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run.add_to(groups)
    if word != "run":
        _add_others(groups)
    return top


def _add_others(groups: Groups) -> None:
    from importlib.metadata import entry_points

    from understudy.proxy.bench import command as bench
    from understudy.proxy.commands import indexes, journal, llm, models, policies, sidecar

    for each in (policies, sidecar, journal, bench, indexes, models, llm):
        each.add_to(groups)
    for other in entry_points(group=PLUGINS):
        groups.add_parser(other.name, help=f"see `understudy {other.name} --help`", add_help=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words else ""
    try:
        if word != "run" and (other := _plugin(word)) is not None:
            return other(words[1:])
        arguments = parser(word).parse_args(words)
        command: Command = arguments.run
        return command(arguments)
    except Complaint as complaint:
        sys.stderr.write(f"understudy: {complaint}\n")
        return complaint.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WELL


def _plugin(word: str) -> Callable[[Sequence[str]], int] | None:
    """A command that another part, or another package, has put into the group."""
    from importlib.metadata import entry_points

    for other in entry_points(group=PLUGINS):
        if other.name == word:
            return other.load()
    return None


if __name__ == "__main__":
    # by its own name, or the Complaint that others raise would not be the one caught here
    from understudy.proxy import cli

    sys.exit(cli.main())
