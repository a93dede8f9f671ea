"""`understudy envoy …`: what the command line says about Envoy."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from understudy.envoy.bootstrap import ADMIN, CA_FILE, LISTEN, render
from understudy.envoy.legs import Templates
from understudy.envoy.sources import find_templates
from understudy.proxy.cli import add_policies, policies_folder
from understudy.proxy.settings.policy_files import find_files
from understudy.proxy.settings.reading import BadPolicies, load
from understudy.proxy.settings.settings import Settings

EXAMPLES = """examples:
  understudy envoy bootstrap --policies policies/ --output envoy.yaml
  envoy --mode validate -c envoy.yaml
  envoy -c envoy.yaml
"""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `understudy envoy ARGV…`. Returns the exit code: 0 done, 1 the policies or the output won't do, 2 usage."""
    try:
        asked = _parser().parse_args(argv)
    except SystemExit as stop:
        # argparse has said what there is to say
        return stop.code if isinstance(stop.code, int) else 2
    return _bootstrap(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="understudy envoy", description="Put the sidecar behind an Envoy.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    render_it = commands.add_parser(
        "bootstrap",
        help="render an Envoy bootstrap from the policies",
        description="Render an Envoy bootstrap in which each route's upstream is priority 0 and the sidecar\n"
        "priority 1. No secret is written: Envoy takes those it must send from its own environment.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = render_it.add_argument
    add_policies(render_it)
    add("--listen", default=LISTEN, metavar="HOST:PORT", help=f"where Envoy listens (default: {LISTEN})")
    add("--admin", default=ADMIN, metavar="HOST:PORT", help=f"Envoy's admin port (default: {ADMIN})")
    add("--sidecar", metavar="HOST:PORT", help="where Envoy finds the sidecar (default: its server.listen)")
    add("--ca-file", default=CA_FILE, metavar="FILE", help=f"whom https is trusted by (default: {CA_FILE})")
    add("--output", type=Path, metavar="FILE", help="write there, all at once, instead of to standard output")
    return parser


def _bootstrap(asked: argparse.Namespace) -> int:
    folder = policies_folder(asked, os.environ)
    try:
        settings = load(folder, os.environ)
        text = render(
            settings,
            listen=asked.listen,
            admin=asked.admin,
            sidecar=asked.sidecar,
            templates=templates_of(folder, settings, os.environ),
            ca_file=asked.ca_file,
        )
    except BadPolicies as bad:
        for fault in bad.faults:
            print(fault, file=sys.stderr)  # noqa: T201 - the command line's own voice
        return 1
    except ValueError as error:
        return _complain(str(error), 2)
    if asked.output is None:
        sys.stdout.write(text)
        return 0
    try:
        write_whole(asked.output, text)
    except OSError as error:
        return _complain(f"{asked.output} can't be written: {error.strerror or error}", 1)
    return 0


def _complain(why: str, code: int) -> int:
    print(f"understudy envoy bootstrap: {why}", file=sys.stderr)  # noqa: T201 - the command line's own voice
    return code


def templates_of(folder: Path, settings: Settings, environ: Mapping[str, str]) -> Templates:
    """Where Envoy finds the secrets of the policies in `folder`, which were read as `settings`."""

    def read(environ: Mapping[str, str]) -> Settings | None:
        try:
            return load(folder, environ)
        except BadPolicies:
            return None

    text = "\n".join(file.raw.decode(errors="replace") for file in find_files(folder, []))
    return find_templates(settings, sorted(set(_VARIABLE.findall(text))), environ, read)


def write_whole(path: Path, text: str) -> None:
    """Put `text` at `path` so that a reader finds the old file or the new one, never half of either. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # there is no secret in it, and Envoy often runs as somebody else
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
