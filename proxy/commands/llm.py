"""`understudy llm FOLDER`: serve a small language model of one's own on loopback, as OpenAI's chat completions."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from understudy.proxy.cli import NOT_WELL, WELL, Complaint
from understudy.proxy.settings.llm import Llm

Groups = Any  # argparse names the type of add_subparsers() only privately


def add_to(groups: Groups) -> None:
    """Add this module's command to the command line."""
    usual = Llm("")
    llm = groups.add_parser("llm", help="serve a small language model of your own (needs the extra `genai`)")
    llm.add_argument("folder", metavar="FOLDER", type=Path, help="genai_config.json, weights and tokenizer")
    llm.add_argument("--listen", default=usual.listen, help=f"host:port (default {usual.listen})")
    llm.add_argument("--answer-tokens", type=int, default=usual.answer_tokens_max, help="the longest answer")
    llm.add_argument("--waiting", type=int, default=usual.waiting_max, help="calls that may wait for their turn")
    llm.add_argument("--wait-s", type=float, default=usual.wait_s_max, help="how long each may, in seconds")
    llm.add_argument("--with-parent", action="store_true", help="stop when standard input ends")
    llm.set_defaults(run=serve_model)


def serve_model(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from understudy.models.errors import ModelError

    logging.basicConfig(level="INFO", stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    host, _, port = str(arguments.listen).rpartition(":")
    try:
        asyncio.run(_served(arguments, host.strip("[]"), int(port)))
    except (OSError, ValueError) as error:
        raise Complaint(f"{arguments.listen} can't be listened on: {error}") from None
    except ModelError as fault:
        raise Complaint(str(fault), NOT_WELL) from None
    finally:
        # a decoder in the middle of a token would be waited for; nobody hears it any more
        sys.stderr.flush()
        if arguments.with_parent:
            os._exit(WELL)
    return WELL


async def _served(arguments: argparse.Namespace, host: str, port: int) -> None:
    from understudy.proxy.llm.server import Serving, serve

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    if arguments.with_parent:
        threading.Thread(target=_until_the_end, args=(loop, stop), daemon=True).start()
    serving = Serving(
        arguments.folder,
        answer_tokens_max=arguments.answer_tokens,
        waiting_max=arguments.waiting,
        wait_s_max=arguments.wait_s,
    )
    # a sidecar would only start us again: it asks how we are, and tells its operators
    await serve(serving, host, port, stop, stays=arguments.with_parent)


def _until_the_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Whoever started us holds our standard input open for as long as it lives."""
    sys.stdin.buffer.read()
    loop.call_soon_threadsafe(stop.set)
