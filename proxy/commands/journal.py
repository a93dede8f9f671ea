"""Commands on what happened and what is to come: journal, note, risk."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode

from understudy.proxy.cli import NOT_WELL, WELL, Complaint, Groups, console, environ_of, state_folder
from understudy.proxy.commands.admin_client import Silent, add_admin, ask, ask_json, print_told

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COUNT = 50
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NOTE_EXAMPLES = """\
examples:
  understudy note "application 2.14 is out"
  understudy note --component llm_service:api.openai.com:443 --kind model "gpt-x is the default now"
  curl -d "application 2.14 is out" http://127.0.0.1:8788/changes
"""


def add_to(groups: Groups) -> None:
    """Add this module's commands to the command line."""
    journal = groups.add_parser(
        "journal",
        help="print what happened, the last of it last",
        description="Print the journal: failures, changes, health, tiers, recoveries, forecasts and alerts. Asks the"
        " running sidecar; where none answers, the file in the state folder is read.",
    )
    journal.add_argument("--family", action="append", default=[], help="failure, change, recovery, ... (repeatable)")
    journal.add_argument("--component", default="", help="of this one alone, such as llm_service:api.openai.com:443")
    journal.add_argument("--since", default="1d", metavar="TIME", help="90s, 30m, 12h or 7d back (default 1d)")
    journal.add_argument("--count", type=int, default=COUNT, help=f"at most so many (default {COUNT})")
    journal.add_argument("--json", action="store_true", help="as JSON, with all that was measured")
    journal.add_argument("--state", metavar="DIR", help="the state folder (or UNDERSTUDY_STATE)")
    add_admin(journal)
    journal.set_defaults(run=print_journal)

    note = groups.add_parser(
        "note",
        help="note that something was changed, such as a deploy",
        epilog=NOTE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    note.add_argument("text", nargs="+", metavar="TEXT")
    note.add_argument("--component", default="", help="what was changed (default: the application as a whole)")
    note.add_argument("--kind", default="deploy", help="a word for it (default deploy)")
    add_admin(note)
    note.set_defaults(run=send_note)

    risk = groups.add_parser("risk", help="print what is likely to fail soon, and how far that may be believed")
    add_admin(risk, json=True)
    risk.set_defaults(run=print_risk)


def print_journal(arguments: argparse.Namespace) -> int:
    """Print the journal's last entries, the newest last."""
    from understudy.policies.events import Family

    since_s = _seconds(arguments.since)
    known = get_args(Family)
    for family in arguments.family:
        if family not in known:
            raise Complaint(f"journal: --family is one of {', '.join(known)}")
    entries = _entries(arguments, since_s)
    if arguments.json:
        sys.stdout.write(json.dumps(entries, indent=2) + "\n")
        return WELL
    sys.stdout.write("".join(map(_line, reversed(entries))) or "nothing happened\n")
    return WELL


def _entries(arguments: argparse.Namespace, since_s: float) -> list[dict[str, Any]]:
    asked = [("family", family) for family in arguments.family]
    asked += [("since_s", str(since_s)), ("count", str(arguments.count))]
    if arguments.component:
        asked.append(("component", arguments.component))
    try:
        return ask_json(arguments, "/journal?" + urlencode(asked))["entries"]
    except Silent as silent:
        return _entries_of_file(arguments, since_s, str(silent))


def _entries_of_file(arguments: argparse.Namespace, since_s: float, why: str) -> list[dict[str, Any]]:
    """After a crash nobody answers, and the journal is what one wants to see."""
    from understudy.proxy.control.entries import FILE
    from understudy.proxy.control.journal import Journal
    from understudy.proxy.reports.risks import entry_told

    path: Path = state_folder(arguments, environ_of(arguments)) / FILE
    if not path.exists():
        raise Complaint(f"{why}; and there is no journal in {path.parent}")
    journal = Journal(path)
    try:
        journal.open()
        entries = journal.entries(
            arguments.family, arguments.component, since=time.time() - since_s, count=arguments.count
        )
    except OSError as fault:
        raise Complaint(f"{path}: {fault}") from None
    finally:
        journal.close()
    sys.stderr.write(f"{why}; read from {path}\n")
    return [entry_told(entry) for entry in entries]


def _line(entry: dict[str, Any]) -> str:
    from understudy.proxy.reports.risks import at_told

    component, kind, detail = entry["component"].rstrip(":"), entry["kind"], entry["detail"]
    head = f"{at_told(entry['at'])}  {entry['family']:<9} {component}  {kind}"
    if replica := entry["facts"].get("replica"):
        head += f" (replica {replica})"
    # some details begin with what they are of
    lines = [f"{head}: {detail.removeprefix(f'{kind}: ')}" if detail else head]
    lines += [f"{'':<22}{changed}" for changed in entry.get("changes", ())]
    return "\n".join(lines) + "\n"


def _seconds(text: str) -> float:
    try:
        return float(text[:-1]) * UNITS_S[text[-1:]]
    except (ValueError, KeyError):
        raise Complaint(f"journal: --since {text}: expected a number and s, m, h or d, such as 12h") from None


def send_note(arguments: argparse.Namespace) -> int:
    """Tell the running sidecar that something was changed."""
    body = {"text": " ".join(arguments.text), "kind": arguments.kind}
    if arguments.component:
        body["component"] = arguments.component
    sys.stdout.write(ask(arguments, "/changes", json.dumps(body)))
    return WELL


def print_risk(arguments: argparse.Namespace) -> int:
    """Print every component's risk; 1 when one is to be warned of."""
    told: dict[str, Any] = ask_json(arguments, "/risk")
    print_told(told, _print_table, as_json=arguments.json)
    return NOT_WELL if any(one["warns"] for one in told["components"]) else WELL


def _print_table(told: dict[str, Any]) -> None:
    out = console()
    low, high = told["lead_s"] / 60, (told["lead_s"] + told["window_s"]) / 60
    if not told["components"]:
        out.print("nothing is known yet: risks are looked at once a minute")
        return
    out.print(_table(told, f"risk of a failure in {low:.0f} to {high:.0f} minutes"))
    for one in told["components"]:
        _print_component(out, one)


def _table(told: dict[str, Any], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("component", overflow="fold")
    for name in ("risk", "usually", "trust", "failures", "skill", "precision", "recall"):
        table.add_column(name, justify="left" if name == "trust" else "right", no_wrap=True)
    for one in told["components"]:
        score = one["score"]
        trust = one["trust"] if one["trust"] == "trusted" else f"learning ({score['positives']})"
        cells = (_share(one["risk"], one["warns"]), _share(one["base"]), trust, str(one["failures"]))
        skill = "-" if score["skill"] is None else f"{score['skill']:.2f}"
        table.add_row(one["component"], *cells, skill, _share(score["precision"]), _share(score["recall"]))
    return table


def _print_component(out: Console, one: dict[str, Any]) -> None:
    """Why, whose fault it may be and what to do, where there is anything to say beside the usual."""
    is_unusual = one["risk"] is None or one["risk"] > 2 * one["base"]
    if not is_unusual and not one["recommendations"]:
        return
    out.print(f"\n[bold]{one['component']}[/bold]")
    for words in one["why"] if is_unusual else ():
        out.print(f"  because   {words}", markup=False)
    for suspect in one["suspects"]:
        word = "accused " if suspect["accused"] else "suspect "
        out.print(f"  {word}  {suspect['detail'] or suspect['kind']} ({suspect['share']:.0%})", markup=False)
    for advice in one["recommendations"]:
        here = f"; helped {advice['helped']} of {advice['tried']} times here" if advice["tried"] else ""
        out.print(f"  advice    {advice['words']} ({advice['evidence']}{here})", markup=False)


def _share(value: float | None, loud: bool = False) -> str:
    if value is None:
        return "-"
    text = f"{value:.1%}"
    return f"[bold red]{text}[/bold red]" if loud else text
