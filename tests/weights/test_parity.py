"""Parity with the original frameworks at small input sizes; see scripts/check_parity.py."""

import jax
import numpy as np
import pytest

from agenet.frameworks.networks import create, why_not
from agenet.models import create_model
from scripts.check_parity import compare, compare_gradients, too_large
from tests.random_variables import random_variables

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def skip_without(source):
    if message := why_not(source):
        pytest.skip(message)


# TensorFlow pads odd sizes differently from even ones.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name", "size", "suffix"),
    [
        ("keras", "ResNet50", 64, ".weights.h5"),
        ("keras", "EfficientNetB0", 64, ".h5"),
        ("keras", "EfficientNetB0", 97, ".weights.h5"),
        ("keras", "EfficientNetV2B0", 97, ".weights.h5"),
        ("keras", "EfficientNetV2B3", 64, ".h5"),
        ("torchvision", "resnet18", 97, ".legacy.pth"),
        ("torchvision", "resnet50", 64, ".pth"),
        ("torchvision", "efficientnet_b0", 97, ".pth"),
        ("torchvision", "efficientnet_b3", 75, ".pth"),
        ("timm", "tf_efficientnet_b0", 97, ".pth"),
        ("timm", "tf_efficientnet_lite0", 66, ".pth"),
        ("timm", "efficientnet_b0", 64, ".pth"),
        ("timm", "tf_efficientnetv2_b0", 97, ".pth"),
        ("lite", "efficientnet-lite0", 81, ".legacy.pth"),
        ("caffe", "age_net", None, ".caffemodel"),
        ("caffe", "gender_net", None, ".caffemodel"),
    ],
)
def test_features_and_logits_agree(source, name, size, suffix):
    skip_without(source)
    differences = compare(create(source, name, size=size), suffix)
    assert not too_large(differences), differences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("keras", "EfficientNetB0"),
        ("keras", "EfficientNetV2B0"),
        ("torchvision", "efficientnet_b0"),
    ],
)
def test_gradients_and_statistics_agree(source, name):
    skip_without(source)
    differences = compare_gradients(source, name, size=64)
    assert not too_large(differences), differences


# Logits of networks with the parameters of `random_variables`, from when parity was established,
# for environments without the other frameworks.
FIGURES = [
    ("resnet18", "torchvision", 65, (-19.40596, -43.51406, 16.99689, 7.75635)),
    ("resnet50", "torchvision", 65, (-0.72097, 7.85424, 2.38845, -6.52979)),
    ("resnet50", "keras", 65, (0.05470, 7.85358, 1.49446, -6.70897)),
    ("efficientnet_b0", "torchvision", 64, (-0.09797, -0.07003, -0.16457, 0.19649)),
    ("efficientnet_b0", "tensorflow", 64, (-0.09732, -0.06939, -0.16326, 0.19592)),
    ("efficientnet_lite0", "tensorflow", 65, (-0.06815, 0.00985, 0.13013, -0.00997)),
    ("levi_hassner", "report", 227, (-5.97716, -4.30389, 2.19223, 2.79295)),
    ("levi_hassner", "caffe", 227, (-5.35499, -3.68109, 2.43648, 4.35329)),
]


@pytest.mark.parametrize(("name", "flavour", "size", "expected"), FIGURES)
def test_logits_have_not_changed_since_parity_was_established(name, flavour, size, expected):
    model = create_model(name, {"age": 8}, flavour=flavour)
    shape = (1, size, size, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables = random_variables(jax.eval_shape(model.init, jax.random.key(0), images))
    logits = jax.jit(model.apply)(variables, images)["age"][0, :4]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
