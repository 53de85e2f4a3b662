"""Trained networks as files for other runtimes: ONNX, ONNX in 8-bit integers, StableHLO."""

from agenet.export.onnx_model import to_onnx

__all__ = ["to_onnx"]
