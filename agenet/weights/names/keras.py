"""Name map of Keras applications: ResNet50, 101, 152, EfficientNetB0 to B7 and V2B0 to V2B3.

And of the network of Levi and Hassner that `agenet.frameworks.keras_networks` composes.
"""

import re
import string
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from agenet.weights.names.common import check_known, check_placed, first_head, head_path, split_name
from agenet.weights.names.keras_input import is_normalisation

_NORM = {
    "gamma": "params/{}/scale",
    "beta": "params/{}/bias",
    "moving_mean": "batch_stats/{}/mean",
    "moving_variance": "batch_stats/{}/var",
    # Of arrays in an .npz file.
    "mean": "batch_stats/{}/mean",
    "var": "batch_stats/{}/var",
}
# tf.keras calls the kernel of a depthwise convolution "depthwise_kernel".
_AFFINE = {
    "kernel": "params/{}/kernel",
    "depthwise_kernel": "params/{}/kernel",
    "bias": "params/{}/bias",
}
_OUTER = {
    "conv1_conv": "conv1",
    "conv1_bn": "bn1",
    "stem_conv": "conv_stem",
    "stem_bn": "bn1",
    "top_conv": "conv_head",
    "top_bn": "bn2",
}
_PLAIN = {
    "dwconv": "conv_dw",
    "bn": "bn1",
    "se_reduce": "se/conv_reduce",
    "se_expand": "se/conv_expand",
    "project_conv": "conv_pw",
    "project_bn": "bn2",
}
_EXPANDED = _PLAIN | {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "bn": "bn2",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
# Blocks of the stages of EfficientNetV2.
_V2_FUSED = {
    "expand_conv": "conv_exp",
    "expand_bn": "bn1",
    "project_conv": "conv_pwl",
    "project_bn": "bn2",
}
_V2_EXPANDED = {"dwconv2" if name == "dwconv" else name: path for name, path in _EXPANDED.items()}
_V2_STAGES = (
    {"project_conv": "conv", "project_bn": "bn1"},
    *(2 * [_V2_FUSED]),
    *(3 * [_V2_EXPANDED]),
)
_STAGES = (_PLAIN, *(6 * [_EXPANDED]))
_V2_3X3 = re.compile(
    r"stem_conv|block\d[a-z]_dwconv2|block1[a-z]_project_conv|block[23][a-z]_expand_conv"
)
_LEVI_HASSNER = ("conv1", "conv2", "conv3", "fc1", "fc2")


def matches(names: Collection[str]) -> bool:
    return "stem_conv/kernel" in names or "conv1_conv/kernel" in names


def to_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors under our names; depthwise kernels [k, k, C, 1] become [k, k, 1, C].

    Keras's ResNets take BGR and ours RGB, so the input channels of the first kernel are reversed.
    Our networks do not normalise their input themselves, see `keras_input`. Kernels of
    EfficientNetV2 may have one axis only, as in an .npz file.

    Raises:
        UserError: a tensor has no counterpart in our network.
    """
    result, unknown = {}, []
    if _is_v2(model):
        tensors = {name: _unflatten(name, tensor, tensors) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if is_normalisation(name):
            continue
        layer, _, variable = name.rpartition("/")
        path = _path(layer, tensors, model)
        template = (_NORM if layer.endswith("bn") else _AFFINE).get(variable)
        if path is None or template is None or template.format(path) in result:
            unknown.append(name)
            continue
        if "_dwconv" in layer and tensor.ndim == 4:
            tensor = tensor.transpose(0, 1, 3, 2)
        elif name == "conv1_conv/kernel" and tensor.ndim == 4:
            tensor = tensor[:, :, ::-1]
        result[template.format(path)] = tensor
    check_known(unknown, "Keras applications")
    return result


def from_agenet(tensors: Mapping[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a network with one head under Keras's names.

    Raises:
        UserError: a tensor has no counterpart in Keras's network.
    """
    layers = {path: name for name in _layers(model) if (path := _path(name, {}, model))}
    layers |= dict.fromkeys(first_head(tensors), "predictions")
    result, unplaced = {}, []
    for name, tensor in tensors.items():
        path, template = split_name(name)
        layer = layers.get(path, "")
        variables = _NORM if layer.endswith("bn") else _AFFINE
        variable = next((v for v, known in variables.items() if known == template), None)
        if not layer or variable is None:
            unplaced.append(name)
            continue
        if "_dwconv" in layer:
            tensor = tensor.transpose(0, 1, 3, 2)
        elif layer == "conv1_conv" and variable == "kernel":
            tensor = tensor[:, :, ::-1]
        result[f"{layer}/{variable}"] = np.ascontiguousarray(tensor)
    check_placed(unplaced, "Keras applications")
    return result


def _layers(model: str) -> Iterator[str]:
    """Yields a superset of the names of layers in such a network."""
    if model == "levi_hassner":
        yield from _LEVI_HASSNER
    elif model.startswith("resnet"):
        yield from ("conv1_conv", "conv1_bn")
        numbers = [f"{number}_{kind}" for number in range(4) for kind in ("conv", "bn")]
        yield from (
            f"conv{stage}_block{i}_{n}"
            for stage in range(2, 6)
            for i in range(1, 51)
            for n in numbers
        )
    else:
        yield from (name for name in _OUTER if not name.startswith("conv1"))
        names = sorted({*_EXPANDED, *_V2_EXPANDED})
        for stage in range(1, 8):
            yield from (f"block{stage}{i}_{n}" for i in string.ascii_lowercase for n in names)


def _path(layer: str, tensors: Mapping[str, np.ndarray], model: str) -> str | None:
    if layer in ("predictions", "probs"):
        bias = tensors.get(f"{layer}/bias")
        return None if bias is None else head_path(bias.size)
    if model == "levi_hassner":
        return f"backbone/{layer}" if layer in _LEVI_HASSNER else None
    if layer in _OUTER:
        return f"backbone/{_OUTER[layer]}"
    if part := re.fullmatch(r"conv([2-5])_block(\d{1,2})_([0-3])_(conv|bn)", layer):
        stage, index, number, kind = int(part[1]) - 1, int(part[2]) - 1, part[3], part[4]
        shortcut = {"conv": "downsample_0", "bn": "downsample_1"}
        return f"backbone/layer{stage}_{index}/" + (
            shortcut[kind] if number == "0" else f"{kind}{number}"
        )
    if part := re.fullmatch(r"block([1-7])([a-z])_(\w+)", layer):
        stage, index = int(part[1]) - 1, ord(part[2]) - ord("a")
        stages = _V2_STAGES if _is_v2(model) else _STAGES
        path = stages[stage].get(part[3]) if stage < len(stages) else None
        return f"backbone/blocks_{stage}_{index}/{path}" if path else None
    return None


def _is_v2(model: str) -> bool:
    return model.startswith("efficientnet_v2")


def _unflatten(name: str, tensor: np.ndarray, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Gives a kernel with one axis its four, as many features as its bias or batch norm has."""
    layer, _, variable = name.rpartition("/")
    if variable != "kernel" or tensor.ndim != 1:
        return tensor
    norm = re.sub(r"(dwconv2|conv)$", "bn", layer)
    features = tensors.get(f"{layer}/bias", tensors.get(f"{norm}/gamma", tensor))
    side = 3 if _V2_3X3.fullmatch(layer) else 1
    shape = (features.size, 1) if layer.endswith("dwconv2") else (-1, features.size)
    return tensor.reshape(side, side, *shape)
