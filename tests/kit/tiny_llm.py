"""A language model small enough to be made here: what follows a token is read from a table of our making.

It is what onnxruntime-genai runs, whole: an ONNX graph with a cache of keys and values, a tokeniser of bytes with a
chat template, and a config. It answers every prompt with the same text, and ends; or goes round in it for ever.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ANSWER = "abcdefghijklmnop"
CONTEXT_TOKENS = 256
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_llm(
    folder: Path, answer: str = ANSWER, *, goes_round: bool = False, context_tokens: int = CONTEXT_TOKENS
) -> Path:
    """The folder of a model that says `answer`, no letter of it twice, one letter a token."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words: Any = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(list(SPECIAL))
    words.save(str(folder / "tokenizer.json"))
    vocabulary |= {name: words.token_to_id(name) for name in SPECIAL}
    end = vocabulary["<|end|>"]
    about = {"tokenizer_class": "GPT2Tokenizer", "chat_template": TEMPLATE, "model_max_length": context_tokens}
    ends = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(about | ends))
    said = [vocabulary[letter] for letter in answer]
    table = np.full((len(vocabulary), len(vocabulary)), -10, np.float32)
    for before, after in zip(
        (vocabulary["<|assistant|>"], *said), (*said, said[0] if goes_round else end), strict=True
    ):
        table[before, after] = 10
    onnx.save(_graph(table), str(folder / "model.onnx"))
    (folder / "genai_config.json").write_text(json.dumps(_config(len(vocabulary), end, context_tokens)))
    return folder


def _graph(table: Any) -> Any:
    """logits = table[input_ids]; the cache grows by a zero for each token, as a real one grows by its keys."""
    node, size = helper.make_node, len(table)
    nodes = [
        node("Gather", ["table", "input_ids"], ["logits"], axis=0),
        node("Shape", ["input_ids"], ["asked"]),
        node("Gather", ["asked", "first"], ["batch"], axis=0),
        node("Gather", ["asked", "second"], ["length"], axis=0),
        node("Concat", ["batch", "one", "length", "one"], ["grown"], axis=0),
        node("Expand", ["nothing", "grown"], ["more"]),
        node("Concat", ["past_key_values.0.key", "more"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "more"], ["present.0.value"], axis=2),
    ]
    info, cache = helper.make_tensor_value_info, [f"past_key_values.0.{each}" for each in ("key", "value")]
    inputs = [info(name, TensorProto.INT64, ["batch", name]) for name in ("input_ids", "attention_mask")]
    inputs += [info(name, TensorProto.FLOAT, ["batch", 1, "past", 1]) for name in cache]
    outputs = [info("logits", TensorProto.FLOAT, ["batch", "input_ids", size])]
    outputs += [info(f"present.0.{each}", TensorProto.FLOAT, ["batch", 1, "total", 1]) for each in ("key", "value")]
    constants = {"table": table, "first": np.array([0]), "second": np.array([1]), "one": np.array([1])}
    constants["nothing"] = np.zeros((1, 1, 1, 1), np.float32)
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _config(vocabulary: int, end: int, context_tokens: int) -> dict[str, Any]:
    decoder = {
        "session_options": {"provider_options": []},
        "filename": "model.onnx",
        "head_size": 1,
        "hidden_size": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = {"type": "llama", "vocab_size": vocabulary, "context_length": context_tokens, "decoder": decoder}
    search = {"do_sample": False, "max_length": context_tokens, "past_present_share_buffer": False}
    return {"model": model | tokens, "search": search}
