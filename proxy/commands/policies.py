"""Commands on policies: check, explain, schema, rules, env, exec."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from understudy.proxy.cli import (
    NOT_WELL,
    POLICIES_HELP,
    WELL,
    Complaint,
    Groups,
    add_policies,
    environ_of,
    policies_folder,
    state_folder,
)

if TYPE_CHECKING:
    from understudy.proxy.settings.reading import Reading
    from understudy.proxy.settings.settings import Settings

EXPLAIN_EXAMPLES = """\
examples:
  understudy explain POST /v1/chat/completions
  understudy explain POST /v1/chat/completions --outcome 429 insufficient_quota
  understudy explain --json --host api.internal GET /collections
"""
LISTEN_HELP = "where the sidecar listens (default: as its policies say)"


def add_to(groups: Groups) -> None:
    """Add this module's commands to the command line."""
    check = groups.add_parser("check", help="say everything that is wrong with a policy folder")
    check.add_argument("policies", nargs="?", metavar="DIR", help=POLICIES_HELP)
    check.set_defaults(run=check_policies)

    explain = groups.add_parser(
        "explain",
        help="print the effective stack of a request",
        epilog=EXPLAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("method", metavar="METHOD")
    explain.add_argument("path", metavar="PATH")
    explain.add_argument("--host", help="the request's Host")
    explain.add_argument("--port", type=int, help="the listener's port")
    explain.add_argument(
        "--outcome", nargs="+", metavar=("STATUS", "CODE"), help="which row judges an error of this status and code"
    )
    explain.add_argument("--json", action="store_true", help="as JSON")
    explain.add_argument("--state", metavar="DIR", help="whose breakers are forced by hand (or UNDERSTUDY_STATE)")
    add_policies(explain)
    explain.set_defaults(run=explain_request)

    schema = groups.add_parser("schema", help="print the JSON Schema of policy files")
    schema.set_defaults(run=print_schema)

    rules = groups.add_parser("rules", help="print the objectives as Prometheus rules")
    add_policies(rules)
    rules.set_defaults(run=print_rules)

    env = groups.add_parser("env", help="print the exports an application needs")
    env.add_argument("--listen", metavar="HOST:PORT", help=LISTEN_HELP)
    add_policies(env)
    env.set_defaults(run=print_env)

    execute = groups.add_parser("exec", help="run a command with those exports set")
    execute.add_argument("--listen", metavar="HOST:PORT", help=LISTEN_HELP)
    add_policies(execute)
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    execute.set_defaults(run=execute_with_env)


def read(arguments: argparse.Namespace) -> Reading:
    """The policies a command is about, with their faults."""
    from understudy.proxy.dialects import KINDS
    from understudy.proxy.settings.reading import read_folder

    environ = environ_of(arguments)
    return read_folder(policies_folder(arguments, environ), environ, KINDS)


def sound_settings(arguments: argparse.Namespace) -> Settings:
    """The settings a command is about. Raises Complaint with every fault."""
    reading = read(arguments)
    if reading.settings is None:
        raise Complaint("these policies can't be read:\n" + "\n".join(map(str, reading.faults)), NOT_WELL)
    return reading.settings


def check_policies(arguments: argparse.Namespace) -> int:
    """Print every fault and warning; 1 when there are faults."""
    reading = read(arguments)
    for warning in reading.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for fault in reading.faults:
        sys.stdout.write(f"{fault}\n")
    if reading.settings is None:
        sys.stderr.write(f"{len(reading.faults)} fault{'s' * (len(reading.faults) != 1)}\n")
        return NOT_WELL
    count = len(reading.settings.routes)
    sys.stderr.write(f"ok: {count} route{'s' * (count != 1)}, policies {reading.settings.digest}\n")
    return WELL


def explain_request(arguments: argparse.Namespace) -> int:
    """Print the effective stack of a request; 1 when no route claims it."""
    from understudy.proxy.orders import orders_of
    from understudy.proxy.reports.explain import explain, explain_data

    settings = sound_settings(arguments)
    reading = read(arguments)
    asked = (arguments.method.upper(), arguments.path, arguments.host, arguments.port)
    forced = orders_of(state_folder(arguments, environ_of(arguments))).breakers
    data = explain_data(reading, *asked, forced=forced)
    if arguments.outcome:
        return _explain_outcome(arguments, reading, data)
    text = json.dumps(data, indent=2) if arguments.json else explain(reading, *asked, forced=forced)
    sys.stdout.write(text.rstrip("\n") + "\n")
    return WELL if settings.routes and data.get("route") else NOT_WELL


def _explain_outcome(arguments: argparse.Namespace, reading: Reading, data: dict[str, Any]) -> int:
    from understudy.proxy.settings.outcomes import deciding

    status, *codes = arguments.outcome
    if not (status.isdecimal() and 400 <= int(status) <= 599):
        raise Complaint("explain: --outcome takes a status from 400 to 599, and then the error's code if it has one")
    route = data.get("route")
    if reading.settings is None or not route:
        sys.stdout.write("nobody claims this: it is answered 404\n")
        return NOT_WELL
    decided = deciding(reading.settings, reading.origins, route["name"], int(status), codes)
    sys.stdout.write(json.dumps(decided, indent=2) + "\n" if arguments.json else "".join(map(_decided_line, decided)))
    return WELL


def _decided_line(each: dict[str, Any]) -> str:
    verdict = f"{each['outcome']}, {each['follow']}, called {each['reason']}"
    return f"{each['tier']} ({each['provider']}): {verdict}; decided by {each['from']}\n"


def print_schema(_arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of a policy file."""
    from understudy.proxy.settings.schema import text

    sys.stdout.write(text())
    return WELL


def print_rules(arguments: argparse.Namespace) -> int:
    """Print a Prometheus rules file."""
    from understudy.proxy.reports.prometheus_rules import rules_text

    sys.stdout.write(rules_text(sound_settings(arguments)))
    return WELL


def exports(settings: Settings) -> dict[str, str]:
    """What an application must have in its environment to come to us: variables that the official SDKs read."""
    from understudy.proxy.settings.addresses import parse_address, told_address

    address, tls = told_address(settings)
    host, port = parse_address(address)
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    base = f"{'https' if tls else 'http'}://{shown}:{port}"
    found: dict[str, str] = {}
    for route in settings.routes:
        match = route.claims[0]
        claimed = match.path or match.prefix or "/"
        if route.dialect.startswith("openai-"):
            prefix = claimed.partition("/v1")[0].rstrip("/") if not match.strip else claimed.rstrip("/")
            found.setdefault("OPENAI_BASE_URL", f"{base}{prefix}/v1")
        elif route.dialect == "qdrant":
            prefix = claimed.partition("/collections")[0].rstrip("/") if not match.strip else claimed.rstrip("/")
            found.setdefault("QDRANT_URL", base + prefix)
    if "OPENAI_BASE_URL" in found and not os.environ.get("OPENAI_API_KEY"):
        # the SDK will not start without one; the local tier asks for none
        found["OPENAI_API_KEY"] = "understudy"
    return found


def print_env(arguments: argparse.Namespace) -> int:
    """Print shell exports."""
    for name, value in exports(sound_settings(arguments)).items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return WELL


def execute_with_env(arguments: argparse.Namespace) -> int:
    """Become the given command, with the exports set."""
    words: list[str] = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise Complaint("exec: no command given; try `understudy exec -- python app.py`")
    environ = {**os.environ, **exports(sound_settings(arguments))}
    try:
        os.execvpe(words[0], words, environ)  # noqa: S606 (running the user's command is what was asked)
    except OSError as error:
        raise Complaint(f"exec: {words[0]}: {error.strerror}") from None
