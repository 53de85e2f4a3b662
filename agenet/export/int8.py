"""ONNX models in integers of 8 bits, for CPUs."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from agenet.errors import UserError
from agenet.export.onnx_model import INPUT

_BATCH = 16
# The first layers are the most sensitive, and few: with three of them in float32 EfficientNet-Lite0
# answered otherwise for 2.6 % of FairFace's ages instead of 4.5 %, as fast.
_FIRST = 3
_QUANTIZED = ("Conv", "Relu", "Clip", "Add", "Mul", "Sigmoid", "MaxPool", "GlobalAveragePool")


def quantize(model: bytes, images: np.ndarray) -> bytes:
    """A model of `agenet.export.to_onnx` whose convolutions compute in integers.

    The first layers and what is behind the last convolution, the heads, stay in float32. The ranges
    of all other arrays are those that they have for `images`, and weights have a scale for
    each channel (QDQ format of ONNX Runtime).

    Args:
        model: in single precision.
        images: uint8 [N, S, S, 3], a hundred or more pictures like those that it will see.

    Raises:
        UserError: the network has no convolution.
    """
    loaded = onnx.load_from_string(model)
    metadata = {prop.key: prop.value for prop in loaded.metadata_props}
    nodes = list(loaded.graph.node)
    convs = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    if not convs:
        raise UserError("not exported: a network without convolutions gains nothing from integers")
    first = convs[min(_FIRST, len(convs) // 4)]
    inside = [node for node in nodes[first : _end(nodes, convs[-1])] if node.name]
    quietly = logging.getLogger()
    level = quietly.level
    quietly.setLevel(logging.ERROR)  # It advises a shape inference that our models do not need.
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            quantize_static(
                loaded,
                path,
                _Pictures(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_quantize=[node.name for node in inside],
                per_channel=True,
                # With 7 bits it would be the same on every CPU, and less accurate on all. With 8,
                # sums of two products saturate on those without VNNI instructions.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            quantized = onnx.load(path)
    finally:
        quietly.setLevel(level)
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, metadata)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized.SerializeToString()


def _end(nodes: list[Any], last_conv: int) -> int:
    """The index behind the activation of the last convolution."""
    end = last_conv + 1
    while end < len(nodes) and nodes[end].op_type in ("Relu", "Clip", "Add", "Mul", "Sigmoid"):
        end += 1
    return end


class _Pictures(CalibrationDataReader):
    """Batches of pictures for the calibration."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = (
            images[start : start + _BATCH] for start in range(0, len(images), _BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
