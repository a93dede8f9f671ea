"""A model by path and manifest: every fault is named with its file, and what is right runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from understudy.models.embedder import load
from understudy.models.errors import ModelError
from understudy.models.manifest import MANIFEST_NAME, read_manifest
from understudy.models.weights import sha256_of

GOOD: dict[str, Any] = {
    "name": "org/tiny",
    "file": "tiny.onnx",
    "tokenizer": "tokenizer.json",
    "pooling": "mean",
    "normalise": True,
    "dimensions": 4,
    "tokens_max": 8,
}


def tiny_graph(inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids")) -> bytes:
    """A "model" whose hidden state of token i is (i, 1, 0, 0): enough to see pooling, prefixes and the cut."""
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in inputs]
    table = np.zeros((40, 4), np.float32)
    table[:, 0], table[:, 1] = np.arange(40), 1.0
    # Every input must be used; the mask and the types add nothing.
    nodes = [helper.make_node("Gather", ["table", inputs[0]], ["rows"])]
    for index, name in enumerate(inputs[1:]):
        nodes.append(helper.make_node("Mul", [name, "zero"], [f"nothing{index}"]))
        nodes.append(helper.make_node("Cast", [f"nothing{index}"], [f"float{index}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Unsqueeze", [f"float{index}", "last"], [f"column{index}"]))
        nodes.append(
            helper.make_node("Add", ["rows" if not index else f"sum{index - 1}", f"column{index}"], [f"sum{index}"])
        )
    nodes.append(helper.make_node("Identity", [f"sum{len(inputs) - 2}"], ["last_hidden_state"]))
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.zeros(1, np.int64), "zero"),
        numpy_helper.from_array(np.array([-1]), "last"),
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", 4])
    graph = helper.make_graph(nodes, "tiny", values, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def tiny_tokenizer() -> str:
    """Words are their own numbers: "7" is token 7; anything else is token 1."""
    vocabulary = {str(number): number for number in range(40)}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "1"},
        }
    )


def write(folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    entries = {name: value for name, value in (GOOD | changes).items() if value is not None}
    (folder / MANIFEST_NAME).write_text(yaml.safe_dump(entries))
    (folder / "tiny.onnx").write_bytes(tiny_graph() if graph is None else graph)
    (folder / "tokenizer.json").write_text(tiny_tokenizer())
    return folder


def test_a_model_by_its_folder_embeds_with_its_pooling_and_prefixes(tmp_path: Path) -> None:
    model = write(tmp_path, normalise=False, query_prefix="4 ", dimensions=4)
    embedder = load(model, tmp_path / "cache", "cpu")
    assert embedder.embed(["6 8", "2"]).tolist() == [[6.0, 1.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]
    assert embedder.embed(["6 8"], "document").tolist() == [[7.0, 1.0, 0.0, 0.0]]
    assert embedder.space.name == "org/tiny"
    assert not (tmp_path / "cache").exists()


def test_its_texts_are_cut_where_it_says_and_its_vectors_normalised_if_it_says_so(tmp_path: Path) -> None:
    embedder = load(str(write(tmp_path, pooling="cls") / MANIFEST_NAME), tmp_path, "cpu")
    assert embedder.embed(["3 " * 100])[0].tolist() == pytest.approx([3 / 10**0.5, 1 / 10**0.5, 0, 0])
    mean = load(write(tmp_path, normalise=False), tmp_path, "cpu")
    assert mean.embed(["8 " * 8 + "30 " * 50])[0, 0] == 8.0


def test_a_graph_with_names_of_its_own_is_fed_by_them(tmp_path: Path) -> None:
    graph = tiny_graph(("ids", "mask"))
    inputs = {"input_ids": "ids", "attention_mask": "mask"}
    embedder = load(write(tmp_path, graph, inputs=inputs, output="last_hidden_state"), tmp_path, "cpu")
    assert embedder.embed(["3"]).shape == (1, 4)
    with pytest.raises(ModelError, match=r"the graph's inputs are \['ids', 'mask'\]"):
        load(write(tmp_path, graph), tmp_path, "cpu")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dimensions": "4"}, "dimensions: expected a whole number from 1 to 65536, got '4'"),
        ({"dimensions": True}, "dimensions: expected a whole number"),
        ({"dimensions": None}, "dimensions: missing; expected a whole number"),
        ({"pooling": "max"}, "pooling: expected mean, cls or none-in-graph, got 'max'"),
        ({"normalise": "yes please"}, "normalise: expected true or false"),
        ({"file": "other.onnx"}, "file: no file at"),
        ({"tokenizer": "../nowhere.json"}, "tokenizer: no file at"),
        ({"poling": "mean"}, "poling: unknown key; known are name, file"),
        ({"inputs": {"ids": "input_ids"}}, "inputs: expected a mapping from input_ids"),
        ({"inputs": "ids"}, "inputs: expected a mapping"),
        ({"sha256": "abc"}, "sha256: expected 64 hex digits"),
        ({"name": " "}, "name: expected a name"),
    ],
)
def test_a_fault_is_named_with_its_file_and_key(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_manifest(write(tmp_path, **changes))
    assert str(caught.value).startswith(f"{tmp_path / MANIFEST_NAME}: ")
    assert complaint in str(caught.value)


def test_all_faults_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_manifest(write(tmp_path, dimensions=0, pooling="max", tokens_max=None))
    assert str(caught.value).count("; ") >= 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "is not YAML"),
        ("- a", "expected a mapping"),
        ("", "expected a mapping, got nothing"),
        ("\x00", "not YAML"),
    ],
)
def test_a_manifest_that_is_no_mapping_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ModelError, match=complaint):
        read_manifest(tmp_path)


def test_a_manifest_may_be_json_and_an_absent_or_huge_one_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(GOOD))
    assert read_manifest(tmp_path / "model.json").dimensions == 4
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_manifest(tmp_path / "absent.yaml")
    (tmp_path / "huge.yaml").write_text("#" * 100_000)
    with pytest.raises(ModelError, match="longer than"):
        read_manifest(tmp_path / "huge.yaml")


def test_a_model_that_is_not_the_one_its_manifest_names_is_refused(tmp_path: Path) -> None:
    model = write(tmp_path)
    sha = sha256_of(model / "tiny.onnx")
    assert load(write(tmp_path, sha256=sha.upper()), tmp_path, "cpu").provider == "cpu"
    with pytest.raises(ModelError, match="its SHA-256 is not the one in the manifest"):
        load(write(tmp_path, sha256="0" * 64), tmp_path, "cpu")


def test_a_model_that_gives_other_dimensions_than_promised_is_refused_when_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gave \[1, 4\] where \[1, 5\] was promised"):
        load(write(tmp_path, dimensions=5), tmp_path, "cpu")


def test_a_broken_graph_or_tokeniser_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot open it"):
        load(write(tmp_path, b"no graph"), tmp_path, "cpu")
    model = write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"not a tokenizer\.json"):
        load(model, tmp_path, "cpu")
