"""A model is known by a name only after its folder was checked, its graphs were built, and they said what they must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.models.test_manifest import write
from understudy.models.embedder import Embedder, load, load_variant
from understudy.models.errors import ModelError
from understudy.models.graph import BertShape, bert_graph
from understudy.models.manifest import MANIFEST_NAME, read_manifest
from understudy.models.reference import Reference
from understudy.models.registry import add, known, verify


@pytest.fixture(scope="module")
def added(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models in which the embedded model's own files were registered as `mini`, with prefixes."""
    cache = tmp_path_factory.mktemp("models")
    manifest, checks = add(cache, source, "mini", {"query_prefix": "query: ", "document_prefix": ""})
    assert [check.variant for check in checks] == ["fp32", "fp16", "int8"]
    assert all(check.fault == "" for check in checks)
    assert manifest.query_prefix == "query: "
    return cache


@pytest.fixture
def copy(added: Path, tmp_path: Path) -> Path:
    shutil.copytree(added, tmp_path / "models")
    return tmp_path / "models"


def folder_like(source: Path, to: Path, **config: Any) -> Path:
    """A model's folder without its weights, its configuration changed."""
    to.mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (to / name).symlink_to(source / name)
    page = json.loads((source / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(page))
    return to


def test_what_was_added_is_loaded_by_its_name_and_gives_the_references_vectors(added: Path, embedder: Embedder) -> None:
    mini = load("mini", added, "cpu")
    assert (mini.variant, mini.space.name, mini.space.query_prefix) == ("int8", "mini", "query: ")
    assert mini.self_test() > 0.97
    assert np.allclose(mini.embed(["so"], "query"), embedder.embed(["query: so"]), atol=1e-5)
    assert load_variant("mini", added, "fp32").self_test() > 0.9999


def test_the_fp16_graph_of_gpus_says_the_same_where_a_cpu_runs_it(added: Path) -> None:
    half = load_variant("mini", added, "fp16")
    assert half.self_test() > 0.999
    assert (added / "mini" / "fp16.onnx").stat().st_size < 50_000_000


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_model_that_is_pooled_by_its_first_token_gives_the_references_vectors(*, half: bool, normalise: bool) -> None:
    import onnxruntime

    dice = np.random.default_rng(1)
    width = 8
    sizes = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    sizes |= {"attention.output.dense": (width, width), "intermediate.dense": (16, width), "output.dense": (width, 16)}
    weights: dict[str, Any] = {
        "embeddings.word_embeddings.weight": dice.normal(size=(30, width)),
        "embeddings.position_embeddings.weight": dice.normal(size=(9, width)),
        "embeddings.token_type_embeddings.weight": dice.normal(size=(2, width)),
    }
    for name, size in sizes.items():
        weights[f"encoder.layer.0.{name}.weight"] = dice.normal(size=size)
        weights[f"encoder.layer.0.{name}.bias"] = dice.normal(size=size[0])
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"] = np.ones(width), np.zeros(width)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    shape = BertShape(layers=1, heads=2, pooling="cls", normalise=normalise)
    session = onnxruntime.InferenceSession(bert_graph(weights, shape, half=half), providers=["CPUExecutionProvider"])
    ids = np.array([[3, 5, 7], [9, 4, 2]])
    (given,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert np.allclose(given, Reference(weights, shape).embed(ids.tolist()), atol=2e-2 if half else 1e-5)


def test_all_models_are_listed_with_their_precisions_and_a_damaged_one_says_what_is_wrong(copy: Path) -> None:
    write_into = copy / "broken"
    write_into.mkdir()
    (write_into / MANIFEST_NAME).write_text("name: 7")
    embedded, broken, mini = known(copy)
    assert (embedded.name, embedded.state, embedded.dimensions) == ("all-MiniLM-L6-v2", "not built", 384)
    assert (mini.name, mini.state, set(mini.sizes)) == ("mini", "built", {"fp32", "int8", "fp16"})
    assert mini.fingerprint != embedded.fingerprint
    assert broken.state == "damaged"
    assert "name: expected a name, got 7" in broken.detail


def test_verifying_tests_every_precision_and_finds_a_flipped_bit(copy: Path) -> None:
    assert {check.variant: check.fault for check in verify(copy, "mini")} == {"fp32": "", "int8": "", "fp16": ""}
    graph = copy / "mini" / "int8.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    (check,) = verify(copy, "mini")
    assert (check.variant, check.cosine) == ("int8.onnx", None)
    assert "SHA-256" in check.fault
    with pytest.raises(ModelError, match="SHA-256"):
        load("mini", copy, "cpu")


def test_a_precision_that_does_not_say_what_it_must_is_found_by_its_cosine(copy: Path) -> None:
    page = yaml.safe_load((copy / "mini" / MANIFEST_NAME).read_text())
    probes = json.loads((copy / "mini" / "probes.json").read_text())
    probes["vectors"] = probes["vectors"][::-1]
    (copy / "mini" / "probes.json").write_text(json.dumps(probes))
    del page["sums"]
    (copy / "mini" / MANIFEST_NAME).write_text(yaml.safe_dump(page))
    assert all("wrong vectors" in check.fault for check in verify(copy, "mini"))


def test_the_embedded_model_is_verified_too(cache: Path, embedder: Embedder) -> None:
    checks = verify(cache, "all-MiniLM-L6-v2")
    assert "int8" in {check.variant for check in checks}
    assert all(check.fault == "" for check in checks)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "t5"}, "model_type: expected bert, got 't5'"),
        ({"hidden_act": "relu"}, "hidden_act: expected gelu, got 'relu'"),
        ({"num_hidden_layers": 12}, "6 layers, config.json says 12"),
        ({"hidden_size": 768}, "vectors of 384, config.json says 768"),
        ({"num_attention_heads": 7}, "384 dimensions do not divide into 7 heads"),
        ({"max_position_embeddings": 8192}, "512 positions, config.json says 8192"),
        ({"num_hidden_layers": "six"}, "num_hidden_layers: expected a whole number"),
    ],
)
def test_a_folder_that_cannot_be_built_is_refused_and_nothing_kept(
    source: Path, tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    folder = folder_like(source, tmp_path / "folder", **config)
    with pytest.raises(ModelError) as caught:
        add(tmp_path / "cache", folder)
    assert complaint in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_pooling_and_further_layers_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    folder = folder_like(source, tmp_path / "folder")
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ModelError, match="has Dense, which cannot be built"):
        add(tmp_path / "cache", folder)
    (folder / "modules.json").unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="pools by max_tokens"):
        add(tmp_path / "cache", folder)


def test_missing_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"lacks config\.json, tokenizer\.json, model\.safetensors"):
        add(tmp_path / "cache", tmp_path / "empty")


@pytest.mark.parametrize("name", ["", "a/b", "..", "all-minilm-l6-v2", ".hidden"])
def test_a_name_that_would_leave_the_folder_or_hide_the_embedded_model_is_refused(
    source: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ModelError):
        add(tmp_path / "cache", tmp_path / "any" if not name else source, name)


def test_a_model_with_a_manifest_of_its_own_is_copied_and_given_sums(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    own = write(tmp_path / "tiny", query_prefix="4 ")
    manifest, checks = add(tmp_path / "cache", own)
    assert [(check.variant, check.cosine) for check in checks] == [("fp32", 1.0)]
    assert set(manifest.sums) == {"tiny.onnx", "tokenizer.json"}
    assert load("tiny", tmp_path / "cache", "cpu").space.query_prefix == "4 "
    # Once more under the same name: replaced whole.
    add(tmp_path / "cache", write(tmp_path / "tiny", query_prefix="5 "))
    assert read_manifest(tmp_path / "cache" / "tiny").query_prefix == "5 "
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]


def test_prompts_that_the_folder_names_become_prefixes(source: Path, tmp_path: Path) -> None:
    from understudy.models.registry import _prompts

    folder = folder_like(source, tmp_path / "folder")
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: ", "passage": "passage: "}})
    )
    assert _prompts(folder) == {"query_prefix": "query: ", "document_prefix": "passage: "}
