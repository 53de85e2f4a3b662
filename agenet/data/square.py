"""Pictures of any size as the squares that are stored, for training and for serving alike."""

import cv2
import numpy as np


def to_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture uint8 [H, W] or [H, W, C], resized to `size` pixels."""
    height, width = image.shape[:2]
    if height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    # Averaging when shrinking avoids aliasing; enlarging has nothing to average.
    interpolation = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=interpolation)
