"""A small language model of the user's own, run by ONNX Runtime's generator: messages in, words out as they come.

    folder: genai_config.json, *.onnx, tokenizer.json, tokenizer_config.json (with a chat template)

The package is an extra (`understudy[genai]`); it runs on one thread, and is never imported by a process that answers
calls: `proxy.llm.server` has one of its own. Source: github.com/microsoft/onnxruntime-genai.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from understudy.models.errors import ModelError

CONFIG = "genai_config.json"
CONFIG_BYTES_MAX = 1024 * 1024
TEMPERATURE_MIN = 1e-3
"""Below it the likeliest token is taken each time."""


class TooLong(ModelError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an answer is to be given. What is None goes by the model's own settings."""

    tokens_max: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """Why an answer ended, and what it took."""

    reason: Literal["stop", "length", "left"]
    prompt_tokens: int
    completion_tokens: int


class Decoder:
    """A model that has been loaded. One answer at a time: whoever calls it sees to that."""

    def __init__(self, folder: Path) -> None:
        """Load it, which takes seconds. Raises ModelError with what is missing."""
        config = _config(folder)
        runtime = _runtime()
        self.name = folder.resolve().name
        self.context_tokens = int(config.get("model", {}).get("context_length") or 0)
        self._runtime = runtime
        try:
            self._model = runtime.Model(str(folder))
            self._tokenizer = runtime.Tokenizer(self._model)
        except Exception as fault:
            # whatever its own code raises for bad weights, it has no class for
            raise ModelError(f"the model can't be loaded: {fault}", where=folder) from None

    def answer(
        self, messages: Sequence[Mapping[str, str]], wanted: Wanted, is_left: Callable[[], bool] = lambda: False
    ) -> Iterator[str | Ended]:
        """The answer to `messages` (role, content) in pieces, and last why it ended. `is_left` is asked before each
        token whether anybody still listens. Raises TooLong, and ModelError for what breaks."""
        try:
            prompt = self._tokenizer.encode(
                self._tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)
            )
        except Exception as fault:
            raise ModelError(f"the prompt can't be written in the model's own template: {fault}") from None
        room = self.context_tokens - len(prompt) if self.context_tokens else wanted.tokens_max
        if room < 1:
            raise TooLong(f"the prompt has {len(prompt)} tokens, the model's context {self.context_tokens}")
        try:
            yield from self._generated(prompt, wanted, min(wanted.tokens_max, room), is_left)
        except ModelError:
            raise
        except Exception as fault:
            raise ModelError(f"the model broke off: {fault}") from None

    def _generated(
        self, prompt: Any, wanted: Wanted, tokens_max: int, is_left: Callable[[], bool]
    ) -> Iterator[str | Ended]:
        parameters = self._runtime.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt) + tokens_max, **_searching(wanted))
        generator = self._runtime.Generator(self._model, parameters)
        generator.append_tokens(prompt)
        spoken, stops, count = self._tokenizer.create_stream(), Stops(wanted.stop), 0
        while not generator.is_done():
            if is_left():
                yield Ended("left", len(prompt), count)
                return
            generator.generate_next_token()
            count += 1
            words = stops.take(spoken.decode(generator.get_next_tokens()[0]))
            if words:
                yield words
            if stops.reached:
                yield Ended("stop", len(prompt), count)
                return
        if rest := stops.rest():
            yield rest
        # a model that has said its end is done before its ceiling, or with it
        is_cut = count >= tokens_max and int(generator.get_next_tokens()[0]) not in self._ends()
        yield Ended("length" if is_cut else "stop", len(prompt), count)

    def _ends(self) -> set[int]:
        return {int(token) for token in self._tokenizer.eos_token_ids}


class Stops:
    """Lets words through up to a stop sequence; the end of what has come is held while it may be the start of one."""

    __slots__ = ("_held", "_stops", "reached")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.reached = False

    def take(self, words: str) -> str:
        """What of it is to be told now."""
        if not self._stops:
            return words
        held = self._held + words
        ends = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if ends:
            self.reached, self._held = True, ""
            return held[: min(ends)]
        keep = max(
            (size for stop in self._stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0
        )
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What is still held, once no more comes."""
        held, self._held = self._held, ""
        return held


def _searching(wanted: Wanted) -> dict[str, Any]:
    """How tokens are chosen, in the package's words."""
    options: dict[str, Any] = {}
    if wanted.temperature is not None and wanted.temperature < TEMPERATURE_MIN:
        return {"do_sample": False}
    if wanted.temperature is not None:
        options |= {"do_sample": True, "temperature": wanted.temperature}
    if wanted.top_p is not None:
        options |= {"do_sample": True, "top_p": wanted.top_p}
    if wanted.top_k is not None:
        options |= {"do_sample": True, "top_k": wanted.top_k}
    if wanted.seed is not None:
        options["random_seed"] = wanted.seed % 2**31
    return options


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(CONFIG_BYTES_MAX))
    except OSError as error:
        why = f"no weights here: {CONFIG} can't be read ({error.strerror}); onnxruntime-genai's model builder writes it"
        raise ModelError(why, where=folder) from None
    except ValueError as fault:
        raise ModelError(f"{CONFIG} is no JSON: {fault}", where=folder) from None
    if not isinstance(config, dict):
        raise ModelError(f"{CONFIG} is no JSON object", where=folder)
    return cast("dict[str, Any]", config)


def _runtime() -> Any:
    try:
        runtime: Any = import_module("onnxruntime_genai")
    except ImportError as error:
        raise ModelError(
            f"onnxruntime-genai can't be used ({error}); pip install 'understudy[genai]' brings it"
        ) from None
    # newer ones tell their maker how they are used, unless told not to
    quiet = getattr(runtime, "disable_telemetry_events", None)
    if quiet is not None:
        quiet()
    return runtime
