"""Commands on local models: `models list|add|verify|bench|build`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from understudy.proxy.cli import NOT_WELL, WELL, state_folder
from understudy.proxy.commands.indexes import add_common, complaining, embedder_of
from understudy.proxy.knowledge import models_folder

Groups = Any  # argparse names the type of add_subparsers() only privately
ADD_EXAMPLES = """\
DIR holds config.json, tokenizer.json and model.safetensors of a BERT encoder, as Hugging Face's tools leave them, or
an understudy-model.yaml with an ONNX file. It is checked, built in fp32, fp16 and int8, tested against a float64
reference, and kept in the state folder; then a policy file may name it:

  local: {model: bge-small-en-v1.5}
"""


def add_to(groups: Groups) -> None:
    """Add this module's commands to the command line."""
    models = groups.add_parser("models", help="list, add, verify, measure and build local models")
    acts = models.add_subparsers(dest="verb", metavar="VERB", required=True)
    add_common(
        acts.add_parser("list", help="the models that policies can name, and what is built of them"), list_models
    )
    add = acts.add_parser(
        "add",
        help="check a folder with a model, build its graphs, test them, and know it by a name",
        epilog=ADD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.add_argument("folder", metavar="DIR", type=Path)
    add.add_argument("--name", help="what policies call it (default: the folder's name)")
    add.add_argument("--query-prefix", help="what goes before questions, as E5 and BGE want it")
    add.add_argument("--document-prefix", help="what goes before passages")
    add_common(add, add_model)
    verify = acts.add_parser("verify", help="check sums and self-test of each precision, and say where it runs")
    add_common(verify, verify_model)
    bench = acts.add_parser("bench", help="what embedding costs here, and what int8 loses against fp32")
    bench.add_argument("--seconds", type=float, default=3.0, help="how long each measurement takes (default 3)")
    add_common(bench, bench_model)
    add_common(acts.add_parser("build", help="build the ONNX graph now rather than at first start"), build_model)


def _folder(arguments: argparse.Namespace) -> Path:
    return models_folder(state_folder(arguments, os.environ))


def list_models(arguments: argparse.Namespace) -> int:
    """Print every model with its space, dimensions, precisions and sizes; 1 when one is damaged."""
    from understudy.models.registry import known

    damaged = False
    for each in known(_folder(arguments)):
        if each.state == "damaged":
            damaged = True
            sys.stdout.write(f"{each.name}: damaged: {each.detail}\n")
            continue
        sizes = ", ".join(f"{variant} {size / 1e6:.0f} MB" for variant, size in each.sizes.items())
        space = f"space {each.space} ({each.fingerprint})"
        sys.stdout.write(f"{each.name}: {each.dimensions} d, {space}, {each.state}{f': {sizes}' if sizes else ''}\n")
    return NOT_WELL if damaged else WELL


def add_model(arguments: argparse.Namespace) -> int:
    """Register a model, and say how its precisions tested."""
    from understudy.models.registry import add

    written = {"query_prefix": arguments.query_prefix, "document_prefix": arguments.document_prefix}
    prefixes = {key: value for key, value in written.items() if value is not None}
    with complaining():
        manifest, checks = add(_folder(arguments), arguments.folder, arguments.name, prefixes)
    name = manifest.file.parent.name
    sys.stdout.write(f"{name}: {manifest.dimensions} d, {manifest.tokens_max} tokens, space {manifest.name}\n")
    for check in checks:
        sys.stdout.write(f"  {check.variant}: {check.fault or f'worst cosine {check.cosine:.5f}'}\n")
    sys.stdout.write(f"policies name it so:  local: {{model: {name}}}\n")
    return WELL


def verify_model(arguments: argparse.Namespace) -> int:
    """Print what came of sums and self-tests, and where the model runs; 1 when something is wrong."""
    from understudy.models.registry import verify

    with complaining():
        checks = verify(_folder(arguments), arguments.model)
    for check in checks:
        sys.stdout.write(f"{check.variant}: {check.fault or f'well, worst cosine {check.cosine:.5f}'}\n")
    if any(check.fault for check in checks):
        return NOT_WELL
    return build_model(arguments)


def build_model(arguments: argparse.Namespace) -> int:
    """Build the model if need be, run its self-test, and say where it runs."""
    with complaining():
        embedder = embedder_of(arguments)
    space = embedder.space
    sys.stdout.write(
        f"{space.name}: {space.dimensions} d, {embedder.variant}, on {embedder.provider} ({embedder.provider_reason})\n"
    )
    return WELL


def bench_model(arguments: argparse.Namespace) -> int:
    """Print what embedding costs on this machine, and what the quick precision loses on the handbook that ships."""
    from understudy.proxy.commands.model_bench import drift, speed

    with complaining():
        embedder = embedder_of(arguments)
        embedder.warm_up()
        sys.stdout.write(f"{embedder.space.name}, {embedder.variant} on {embedder.provider}\n")
        for line in speed(embedder, arguments.seconds):
            sys.stdout.write(f"{line}\n")
        for line in drift(_folder(arguments), arguments.model):
            sys.stdout.write(f"{line}\n")
    return WELL
