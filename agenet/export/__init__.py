"""Exports trained networks to ONNX (32, 16 or 8 bits) and StableHLO."""

from agenet.export.onnx_model import to_onnx

__all__ = ["to_onnx"]
