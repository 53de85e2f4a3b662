"""What a run's batches are made of: pictures, or features where the backbone is frozen."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from agenet.data.order import epoch_order, evaluation_batches, training_batch
from agenet.data.placement import ImageSource
from agenet.data.resident import label_columns
from agenet.distributed.mesh import batch_sharded, replicated
from agenet.runs.experiment import Experiment
from agenet.runs.feature_cache import View, find_obstacle, hash_weights
from agenet.training.steps import Batch
from agenet.weights.cache import cache_dir

log = logging.getLogger(__name__)

# Pictures that each device takes at a time for their features.
AT_ONCE = 64
# Is raised when the same settings give other features than before.
_VERSION = 2


class Batches(Protocol):
    """Batches for `agenet.training.steps`, on the devices.

    Attributes:
        epochs_found: epochs of the training whose features were on disk from the first.
    """

    epochs_found: int

    def training(self, step: int) -> Generator[Batch, None, None]:
        """Those of the training from a step on, without end."""

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        """Those of the given rows [N], each once, with masks bool [B], False for padding."""


class PictureBatches:
    """Pictures, which the steps augment and take through the whole network."""

    epochs_found = 0

    def __init__(self, experiment: Experiment, pictures: ImageSource, part_size: int = 0):
        """`part_size` is that of evaluations, if it is another one than the experiment's."""
        self.pictures = pictures
        self._experiment = experiment
        self._part_size = part_size or experiment.part_size

    def training(self, step: int) -> Generator[Batch, None, None]:
        yield from self.pictures.batches((r, None) for r in training_rows(self._experiment, step))

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        parts = list(evaluation_batches(rows, self._part_size))
        for batch, (_, mask) in zip(self.pictures.batches(parts), parts, strict=True):
            yield batch, mask


class FeatureBatches:
    """Features, which the steps take through the heads."""

    def __init__(
        self, experiment: Experiment, epochs: list[View], evaluation: View, epochs_found: int
    ):
        """Of the views of all epochs of the training, and of validation and test faces."""
        self.epochs_found = epochs_found
        self._experiment = experiment
        self._sharding = batch_sharded(experiment.mesh)
        self._epochs = epochs
        self._evaluation = evaluation
        self._pooling = int(experiment.config.model.extra_layers)

    def training(self, step: int) -> Generator[Batch, None, None]:
        view = self._epochs[step // self._experiment.steps_per_epoch]
        for number, rows in enumerate(training_rows(self._experiment, step), step):
            previous, view = view, self._epochs[number // self._experiment.steps_per_epoch]
            if view is not previous:
                previous.forget()
            yield self._batch(view, rows, None)

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        for part, mask in evaluation_batches(rows, self._experiment.part_size):
            yield self._batch(self._evaluation, part, mask), mask

    def _batch(self, view: View, rows: np.ndarray, mask: np.ndarray | None) -> Batch:
        both = view.read(rows).reshape(len(rows), 2, -1)
        features = np.ascontiguousarray(both[:, self._pooling])
        columns = label_columns(self._experiment.records, rows, mask) | {"features": features}
        return jax.device_put(columns, self._sharding)


def training_rows(experiment: Experiment, step: int) -> Iterator[np.ndarray]:
    """The rows [B] of the training's batches from a step on, without end."""
    train, config = experiment.splits.train, experiment.config
    for number in itertools.count(step):
        yield training_batch(train, config.batch_size, seed=config.seed, step=number)


def evaluated_rows(experiment: Experiment) -> np.ndarray:
    """Rows [N] whose features are kept for evaluations; several views are tested on pictures."""
    splits = experiment.splits
    tested = splits.test if experiment.config.test_views == 1 else splits.test[:0]
    return np.concatenate([splits.validation, tested])


def why_pictures(experiment: Experiment) -> str:
    """Why pictures pass the whole network in every step; empty if kept features can do instead."""
    if not experiment.backbone_is_frozen:
        return "the backbone is trained"
    if experiment.config.feature_cache == "off":
        return "feature_cache is off"
    if experiment.config.augment.mixup:
        return "mixup mixes pictures"
    # Their caches need not be the same.
    return "there are several processes" if jax.process_count() > 1 else ""


def create_batches(
    experiment: Experiment, variables: Any, *, step: int, show_progress: bool
) -> Batches:
    """Features if the backbone is frozen and the config allows, else pictures; tells which.

    Args:
        experiment: the run.
        variables: its parameters and batch statistics, which may be donated afterwards.
        step: where the training begins or goes on.
        show_progress: draw a progress bar while decoding.
    """
    config = experiment.config
    load_pictures = functools.cache(lambda: experiment.load_images(progress=show_progress))
    if why := why_pictures(experiment):
        if experiment.backbone_is_frozen:
            log.info("features: computed for every step, as %s", why)
        return PictureBatches(experiment, load_pictures())
    root = cache_dir() / "features"
    epochs, evaluation = _create_views(experiment, variables, root, load_pictures)
    views = [*epochs, evaluation]
    obstacle = find_obstacle(root, views, config.feature_cache_bytes)
    if obstacle:
        log.info("features: computed for every step, for %s", obstacle)
        return PictureBatches(experiment, load_pictures())
    batches = [experiment.steps_per_epoch] * len(epochs)
    batches[-1] += experiment.total_steps - sum(batches)
    there = [
        view.holds(count * config.batch_size) for view, count in zip(epochs, batches, strict=True)
    ]
    log.info(
        "features: computed once, %.2f GB in %s; of %d epochs %d are there",
        sum(view.nbytes for view in views) / 1e9,
        root,
        len(epochs),
        sum(there),
    )
    ahead = there[step // experiment.steps_per_epoch :]
    if not (all(ahead) and evaluation.holds(len(evaluation.rows))):
        load_pictures()  # Now, for it counts neither as training nor as validation.
    return FeatureBatches(experiment, epochs, evaluation, sum(there))


def _create_views(
    experiment: Experiment, variables: Any, root: Path, load_pictures: Callable[[], ImageSource]
) -> tuple[list[View], View]:
    """The views of every epoch, in the order of its batches, and of validation and test faces."""
    config, splits = experiment.config, experiment.splits
    # Copied, for a training step destroys the state that it is given.
    backbone = {
        name: jax.tree.map(np.array, {"backbone": tree["backbone"]})
        for name, tree in variables.items()
        if "backbone" in tree
    }
    weights = functools.cache(lambda: jax.device_put(backbone, replicated(experiment.mesh)))

    def compute(rows: np.ndarray, epoch: int | None) -> np.ndarray:
        parts = list(evaluation_batches(rows, AT_ONCE * experiment.mesh.size))
        computed = [
            experiment.feature_step(weights(), batch, epoch)
            for batch in load_pictures().batches(parts)
        ]
        features = [
            np.asarray(both)[:, mask] for both, (_, mask) in zip(computed, parts, strict=True)
        ]
        return np.concatenate(features, axis=1).swapaxes(0, 1).reshape(len(rows), -1)

    images = jax.ShapeDtypeStruct((1, experiment.crop_size, experiment.crop_size, 3), np.float32)
    apply = functools.partial(experiment.model.apply, method="both_features")
    shape: Any = jax.eval_shape(apply, backbone, images)
    source = {
        "version": _VERSION,
        "jax": jax.__version__,  # Which may draw other random numbers.
        "backend": jax.default_backend(),  # Which rounds in its own way.
        "weights": hash_weights(backbone),
        "model": {
            "name": config.model.name,
            "flavour": config.model.flavour,
            "dtype": config.model.dtype,
        },
        "data": experiment.identity()["dataset"],
        "input": {
            "size": config.input.size,
            "crop_size": experiment.crop_size,
            "mean": list(config.input.mean),
            "std": list(config.input.std),
        },
    }
    create = functools.partial(View, root, width=2 * shape.shape[-1])
    epochs = [
        create(
            f"epoch_{epoch}",
            source
            | {"augment": dataclasses.asdict(config.augment), "seed": config.seed, "epoch": epoch},
            splits.train[epoch_order(len(splits.train), config.seed, epoch)],
            compute=functools.partial(compute, epoch=epoch),
        )
        for epoch in range(-(-experiment.total_steps // experiment.steps_per_epoch))
    ]
    return epochs, create(
        "evaluation",
        source,
        evaluated_rows(experiment),
        compute=functools.partial(compute, epoch=None),
    )
