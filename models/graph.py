"""Write a BERT encoder as an ONNX graph, from its weights, pooled and normalised inside.

    input_ids ──> word + position + type ──> LayerNorm ──┐
    attention_mask ─────────────────┬──────> layer × 6 <─┘    Attention, SkipLayerNorm, MatMul, BiasGelu, …
                                    └──> masked mean ──> L2 ──> embedding [n, d]

The operators of com.microsoft fuse what a plain graph spells out: 25 % faster on a CPU with the same accuracy, and they
have CUDA kernels. BiasGelu is the exact (erf) GELU the weights were trained with; FastGelu is its tanh likeness and is
not used. Devlin et al. 2018 (BERT); Reimers and Gurevych 2019 (mean pooling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from understudy.models.errors import ModelError

__all__ = ["BertShape", "bert_graph", "quantised"]

OPSET = 17
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class BertShape:
    """What a BERT's weights do not tell by themselves: its sizes, and how one vector is made of those of its tokens."""

    layers: int
    heads: int
    norm_epsilon: float = 1e-12
    pooling: Literal["mean", "cls"] = "mean"
    normalise: bool = True


def bert_graph(weights: Mapping[str, NDArray[Any]], shape: BertShape, *, half: bool = False) -> bytes:
    """A serialised ONNX model: input_ids, attention_mask int64 [n, t] → embedding float32 [n, d], pooled as `shape`
    says.

    `half` keeps weights and activations in fp16, for GPUs; pooling stays fp32, since a mean over 256 tokens rounds in
    eleven bits. Token types are taken to be zero and baked in. Raises ModelError when a tensor is missing.
    """
    try:
        return _Pen(weights, shape, half=half).model()
    except KeyError as error:
        raise ModelError(f"the weights lack the tensor {error}") from None


class _Pen:
    """Collects nodes and initialisers while the graph is written from top to bottom."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], shape: BertShape, *, half: bool) -> None:
        # onnx takes 0.3 s to import, and only a build needs it.
        from onnx import helper, numpy_helper

        self._helper, self._from_array = helper, numpy_helper.from_array
        self._weights, self._shape, self._half = weights, shape, half
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._width = int(weights["embeddings.word_embeddings.weight"].shape[1])

    def model(self) -> bytes:
        hidden = self._embeddings()
        mask = self._node("Cast", "attention_mask", out="mask_int32", to=6)  # 6 is INT32, which Attention wants
        for index in range(self._shape.layers):
            hidden = self._layer(f"encoder.layer.{index}.", hidden, mask)
        self._pooled(hidden)
        ids = [self._helper.make_tensor_value_info(name, 7, ["n", "t"]) for name in ("input_ids", "attention_mask")]
        out = self._helper.make_tensor_value_info("embedding", 1, ["n", self._width])
        graph = self._helper.make_graph(self._nodes, "bert", ids, [out], list(self._constants.values()))
        opsets = [self._helper.make_opsetid("", OPSET), self._helper.make_opsetid(MICROSOFT, 1)]
        model = self._helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="understudy")
        return cast(bytes, model.SerializeToString())

    def _embeddings(self) -> str:
        weights = self._weights
        words = self._constant("words", weights["embeddings.word_embeddings.weight"])
        # One row of token types is ever used, so it is added to the positions once, here, and not on every call.
        positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        tokens = self._node("Shape", "input_ids", out="tokens", start=1, end=2)
        start = self._constant("zero", np.zeros(1, np.int64))
        rows = self._node("Slice", self._constant("positions", positions), start, tokens, start, out="position_rows")
        words_at = self._node("Gather", words, "input_ids", out="word_rows", axis=0)
        return self._node(
            "LayerNormalization",
            self._node("Add", words_at, rows, out="rows"),
            self._constant("rows.gamma", weights["embeddings.LayerNorm.weight"]),
            self._constant("rows.beta", weights["embeddings.LayerNorm.bias"]),
            out="rows.normed",
            axis=-1,
            epsilon=self._shape.norm_epsilon,
        )

    def _layer(self, at: str, hidden: str, mask: str) -> str:
        weights, names = self._weights, ("query", "key", "value")
        joined = np.concatenate([weights[f"{at}attention.self.{name}.weight"].T for name in names], axis=1)
        biases = np.concatenate([weights[f"{at}attention.self.{name}.bias"] for name in names])
        attended = self._node(
            "Attention",
            hidden,
            self._constant(at + "qkv", joined),
            self._constant(at + "qkv.bias", biases),
            mask,
            out=at + "attended",
            domain=MICROSOFT,
            num_heads=self._shape.heads,
        )
        hidden = self._rejoined(at + "attention.output.", attended, hidden)
        wide = self._node("MatMul", hidden, self._matrix(at + "intermediate.dense.weight"), out=at + "wide")
        bias = self._constant(at + "wide.bias", weights[at + "intermediate.dense.bias"])
        bent = self._node("BiasGelu", wide, bias, out=at + "bent", domain=MICROSOFT)
        return self._rejoined(at + "output.", bent, hidden)

    def _rejoined(self, at: str, branch: str, trunk: str) -> str:
        """Project a branch back to the trunk's width, add them and normalise: the end of both halves of a layer."""
        norms = [self._constant(at + part, self._weights[at + part]) for part in ("LayerNorm.weight", "LayerNorm.bias")]
        return self._node(
            "SkipLayerNormalization",
            self._node("MatMul", branch, self._matrix(at + "dense.weight"), out=at + "projected"),
            trunk,
            *norms,
            self._constant(at + "dense.bias", self._weights[at + "dense.bias"]),
            out=at + "joined",
            domain=MICROSOFT,
            epsilon=self._shape.norm_epsilon,
        )

    def _pooled(self, hidden: str) -> None:
        if self._half:
            hidden = self._node("Cast", hidden, out="hidden_float", to=1)
        if self._shape.pooling == "cls":
            first = self._constant("first", np.array(0))
            pooled = self._node("Gather", hidden, first, out="pooled", axis=1)
        else:
            pooled = self._mean(hidden)
        if not self._shape.normalise:
            self._node("Identity", pooled, out="embedding")
            return
        length = self._node("ReduceL2", pooled, out="length", axes=[-1], keepdims=1)
        self._node("Div", pooled, self._node("Max", length, self._tiny(), out="length_some"), out="embedding")

    def _mean(self, hidden: str) -> str:
        last, middle = self._constant("last", np.array([-1])), self._constant("middle", np.array([1]))
        mask = self._node("Cast", "attention_mask", out="mask_float", to=1)
        column = self._node("Unsqueeze", mask, last, out="mask_column")
        summed = self._node(
            "ReduceSum", self._node("Mul", hidden, column, out="masked"), middle, out="summed", keepdims=0
        )
        counted = self._node("ReduceSum", mask, middle, out="counted", keepdims=1)
        return self._node("Div", summed, self._node("Max", counted, self._tiny(), out="counted_some"), out="mean")

    def _tiny(self) -> str:
        # A row of padding alone (nobody sends one, but a batch may be padded with one) must not divide by zero.
        return self._constant("tiny", np.array(1e-9, np.float32), exact=True)

    def _matrix(self, name: str) -> str:
        # torch keeps Linear as [out, in]; MatMul wants [in, out].
        return self._constant(name, self._weights[name].T)

    def _constant(self, name: str, value: NDArray[Any], *, exact: bool = False) -> str:
        if name not in self._constants:
            if self._half and not exact and value.dtype.kind == "f":
                value = value.astype(np.float16)
            self._constants[name] = self._from_array(np.asarray(value, order="C"), name)
        return name

    def _node(self, operator: str, *inputs: str, out: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(self._helper.make_node(operator, list(inputs), [out], name=out, domain=domain, **attributes))
        return out


def quantised(full: Path, small: Path) -> None:
    """Write the int8 form of an ONNX model beside it: weights per channel, activations measured on every run.

    Per channel, since per tensor loses too much (mean cosine .962 against .995, worst .858 against .970). Only the
    matrix products are quantised: the word table stays fp32, where 8 bits would cost accuracy and save no time.
    """
    import onnx
    from onnxruntime import quantization  # pyright: ignore[reportMissingTypeStubs]

    model = cast(Any, onnx).load(str(full))
    # Says "already simplified": it is, and the quantiser would otherwise warn through the root logger.
    entry = model.metadata_props.add()
    entry.key, entry.value = "onnx.quant.pre_process", "onnxruntime.quant"
    cast(Any, quantization).quantize_dynamic(
        model,
        str(small),
        op_types_to_quantize=["MatMul", "Attention"],
        per_channel=True,
        weight_type=cast(Any, quantization).QuantType.QInt8,
        # Shape inference does not know com.microsoft, so tensors behind it have no type unless one is given.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )
