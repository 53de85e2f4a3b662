"""Finds images of a data set that show the same photograph, by perceptual hashes.

The hash has a bit for each of the 16 x 16 lowest frequencies of the grey image, as C. Zauner's
with 64 bits (*Implementation and Benchmarking of Perceptual Image Hash Functions*, 2010). It
changes little with size, compression and brightness. Mirroring changes the sign of every second
frequency across, so that the hash of a mirrored image follows from that of the image. Faces all
look alike to hashes of 64 bits.
"""

import cv2
import numpy as np

from agenet.errors import require_packages

SIDE = 16
WORDS = SIDE * SIDE // 64
# Bits of 256 that may differ, see data_prep/own_images/README.md for how often that is wrong.
THRESHOLD = 40
_MIRRORED = np.uint64(0x5555_5555_5555_5555)  # the bits of odd frequencies across
_GREY_SIDE = 64  # pixels
_ROTATIONS = 16  # orders in which the hashes are sorted
_NEIGHBOURS = 8  # compared with each hash in each order


def hash_image(image: np.ndarray) -> np.ndarray:
    """The hash of an image uint8 [H, W] or BGR [H, W, 3], of some 256 pixels: uint64 [WORDS]."""
    # Grey first: averaging three channels takes three times as long.
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    # In two steps, the second of a whole factor: four times as fast as one.
    twice = cv2.resize(grey, (2 * _GREY_SIDE, 2 * _GREY_SIDE), interpolation=cv2.INTER_LINEAR)
    small = cv2.resize(twice, (_GREY_SIDE, _GREY_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:SIDE, :SIDE]
    median = np.partition(low.ravel(), SIDE * SIDE // 2)[SIDE * SIDE // 2]
    return np.packbits(low >= median).view(np.uint64)


def find_pairs(hashes: np.ndarray, threshold: int = THRESHOLD) -> np.ndarray:
    """Pairs of images with hashes that differ in at most `threshold` bits: int64 [P, 2], each once.

    One of the two may be mirrored.

    The hashes are sorted several times, each time from another bit on, and compared with their next
    neighbours: time and memory grow with N, not with its square. A few pairs near the threshold
    may be missed.

    Args:
        hashes: uint64 [N, WORDS].
        threshold: in bits.
    """
    images = len(hashes)
    hashes = np.concatenate([hashes, hashes ^ _MIRRORED])
    count = len(hashes)
    bits = np.unpackbits(np.ascontiguousarray(hashes).view(np.uint8), axis=1)
    found = []
    for turn in range(_ROTATIONS):
        # As bytes, which sort from the first bit on.
        rolled = np.packbits(np.roll(bits, -turn * bits.shape[1] // _ROTATIONS, axis=1), axis=1)
        order = np.argsort(rolled.view(f"S{rolled.shape[1]}").ravel(), kind="stable")
        ordered = hashes[order]
        for step in range(1, min(_NEIGHBOURS, count - 1) + 1):
            distance = np.bitwise_count(ordered[step:] ^ ordered[:-step]).sum(
                axis=1, dtype=np.int32
            )
            near = np.flatnonzero(distance <= threshold)
            found.append(np.stack([order[near], order[near + step]], axis=1))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    pairs = np.sort(pairs % max(images, 1), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)  # A face may resemble its mirror.


def find_clusters(count: int, pairs: np.ndarray) -> np.ndarray:
    """The cluster of each of `count` images, int32 [N], from pairs int64 [P, 2] that belong to one.

    Clusters are numbered from 0; an image without a pair is alone in its own.
    """
    require_packages("train", "preparing data", "scipy")
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(links, directed=False)[1]
