"""Quantises ONNX models to 8-bit integers, for CPUs."""

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
# The first layers, which are the most sensitive, stay in float32: with three of them
# EfficientNet-Lite0 changed 2.6 % of its FairFace ages instead of 4.5 %, at the same speed.
_FLOAT_LAYERS = 3
_QUANTIZED = ("Conv", "Relu", "Clip", "Add", "Mul", "Sigmoid", "MaxPool", "GlobalAveragePool")


def quantize(model: bytes, images: np.ndarray) -> bytes:
    """Quantises the convolutions of a model made by `agenet.export.to_onnx`.

    The first layers and the heads stay in float32. The ranges of activations are those for
    `images`; weights have a scale for each channel (QDQ format of ONNX Runtime). Description and
    metadata are kept.

    Args:
        model: the model in single precision.
        images: uint8 [N, S, S, 3], at least about a hundred typical images.

    Raises:
        UserError: the network has no convolution.
    """
    loaded = onnx.load_from_string(model)
    metadata = {prop.key: prop.value for prop in loaded.metadata_props}
    description = loaded.doc_string
    nodes = list(loaded.graph.node)
    convs = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    if not convs:
        raise UserError("not exported: a network without convolutions gains nothing from integers")
    first = convs[min(_FLOAT_LAYERS, len(convs) // 4)]
    inside = [node for node in nodes[first : _end(nodes, convs[-1])] if node.name]
    root_logger = logging.getLogger()
    level = root_logger.level
    # ONNX Runtime recommends shape inference, which these models do not need.
    root_logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            quantize_static(
                loaded,
                path,
                _CalibrationImages(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_quantize=[node.name for node in inside],
                per_channel=True,
                # With 8 bits, sums of two products saturate on CPUs without VNNI instructions. 7
                # bits would avoid that, and be less accurate on all CPUs.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            quantized = onnx.load(path)
    finally:
        root_logger.setLevel(level)
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, metadata)
    quantized.doc_string = description
    onnx.checker.check_model(quantized, full_check=True)
    return quantized.SerializeToString()


def _end(nodes: list[Any], last_conv: int) -> int:
    """The index after the activation of the last convolution."""
    end = last_conv + 1
    while end < len(nodes) and nodes[end].op_type in ("Relu", "Clip", "Add", "Mul", "Sigmoid"):
        end += 1
    return end


class _CalibrationImages(CalibrationDataReader):
    """Batches of images for calibration."""

    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = (
            images[start : start + _BATCH] for start in range(0, len(images), _BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
