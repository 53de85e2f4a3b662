from pathlib import Path

import cv2
import numpy as np
import pytest

from agenet.data.make_folds import make_folds
from agenet.data.near_duplicates import THRESHOLD, WORDS, find_clusters, find_pairs, hash_image


def brute_force(hashes: np.ndarray, threshold: int) -> set[tuple[int, int]]:
    apart = [
        np.bitwise_count(hashes[:, None] ^ other[None]).sum(axis=2, dtype=int)
        for other in (hashes, hashes ^ np.uint64(0x5555555555555555))
    ]
    distance = np.minimum(*apart)
    first, second = np.nonzero(np.triu(distance <= threshold, 1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_a_copy_is_near_and_another_face_is_not(real_data: Path) -> None:
    image = cv2.imread(str(real_data / "media" / "astronaut.png"))
    assert image is not None
    face = image[40:240, 120:320]
    shown = hash_image(face)
    encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    copies = (
        cv2.resize(face, (90, 90), interpolation=cv2.INTER_AREA),
        cv2.imdecode(encoded, cv2.IMREAD_COLOR),
        cv2.convertScaleAbs(face, alpha=0.8, beta=20),
        cv2.cvtColor(face, cv2.COLOR_BGR2GRAY),
    )
    for copy in copies:
        assert copy is not None
        assert np.bitwise_count(shown ^ hash_image(copy)).sum() <= THRESHOLD
    for other in (image[40:240, 100:300], face[::-1].copy()):
        assert np.bitwise_count(shown ^ hash_image(other)).sum() > THRESHOLD


def test_a_mirrored_copy_is_found(real_data: Path) -> None:
    image = cv2.imread(str(real_data / "media" / "astronaut.png"))
    assert image is not None
    face = image[40:240, 120:320]
    mirrored = cv2.resize(face[:, ::-1].copy(), (120, 120), interpolation=cv2.INTER_AREA)
    others = [image[40:240, 100:300], face[::-1].copy()]
    hashes = np.stack([hash_image(each) for each in (face, others[0], mirrored, others[1])])
    assert find_pairs(hashes).tolist() == [[0, 2]]


def test_pairs_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (600, WORDS), np.uint64)
    for row in range(0, 300, 3):  # Near-duplicates, of up to 30 bits.
        flipped = rng.permutation(WORDS * 64)[: row // 10]
        bits = np.unpackbits(hashes[row].view(np.uint8))
        bits[flipped] ^= 1
        hashes[row + 300] = np.packbits(bits).view(np.uint64)
    expected = brute_force(hashes, THRESHOLD)
    assert len(expected) == 100
    found = set(map(tuple, find_pairs(hashes).tolist()))
    assert found <= expected and len(found) >= 95
    assert not len(find_pairs(hashes[:1])) and not len(find_pairs(hashes[:0]))
    assert find_pairs(np.repeat(hashes[:1], 50, axis=0)).shape[1] == 2


def test_clusters_are_connected_pairs() -> None:
    cluster = find_clusters(6, np.array([[0, 2], [2, 5], [1, 3]]))
    assert cluster[0] == cluster[2] == cluster[5] and cluster[1] == cluster[3]
    assert len(set(cluster.tolist())) == 3
    assert sorted(find_clusters(3, np.zeros((0, 2), np.int64)).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("alone", [True, False])
def test_folds_are_balanced_and_keep_groups(alone: bool) -> None:
    rng = np.random.default_rng(0)
    count = 2000
    group = rng.permutation(count) if alone else rng.integers(0, 300, count)
    _, group = np.unique(group, return_inverse=True)
    cell = rng.choice(6, count, p=[0.5, 0.3, 0.1, 0.05, 0.04, 0.01])
    fold = make_folds(group, cell, 5, seed=0)
    assert fold.min() == 0 and fold.max() == 4
    for number in np.unique(group):
        assert len(np.unique(fold[group == number])) == 1
    counts = np.array([np.bincount(cell[fold == f], minlength=6) for f in range(5)])
    assert np.ptp(counts.sum(axis=1)) <= (6 if alone else 12)
    assert np.ptp(counts, axis=0).max() <= (1 if alone else 12)
    assert (make_folds(group, cell, 5, seed=0) == fold).all()
    assert (make_folds(group, cell, 5, seed=1) != fold).any()
