"""Batches of a run: images, or cached features if the backbone is frozen."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from agenet.data.order import TrainingOrder, evaluation_batches
from agenet.data.placement import ImageSource
from agenet.data.records import Records
from agenet.data.resident import label_columns
from agenet.data.splits import Splits
from agenet.distributed.mesh import batch_sharded, replicated
from agenet.runs.config import RunConfig
from agenet.runs.experiment import Experiment
from agenet.runs.feature_cache import View, find_obstacle, hash_weights
from agenet.runs.identity import ADDED_FIELDS, identify_data
from agenet.runs.teacher import is_file_of_predictions
from agenet.training.steps import Batch
from agenet.weights.cache import cache_dir

log = logging.getLogger(__name__)

# Number of images whose features each device computes at a time.
AT_ONCE = 64
# To be raised when the same settings give other features than before.
_VERSION = 2


class Batches(Protocol):
    """Batches for `agenet.training.steps`, on the devices.

    Attributes:
        epochs_found: number of epochs whose features were cached before the run started.
    """

    epochs_found: int

    def training(self, step: int) -> Generator[Batch, None, None]:
        """Training batches from a step on, without end."""

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        """The given rows [N], each once, with masks bool [B], False for padding."""


@dataclass
class ImageBatches:
    """Batches of images, which steps augment and pass through the whole network.

    Args:
        images: of the data set.
        order: of the training.
        part_size: number of images of an evaluation batch.
        epochs_found: see `Batches`.
    """

    images: ImageSource
    order: TrainingOrder
    part_size: int
    epochs_found: int = 0

    def training(self, step: int) -> Generator[Batch, None, None]:
        yield from self.images.batches((rows, None) for rows in self.order.batches(step))

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        parts = list(evaluation_batches(rows, self.part_size))
        for batch, (_, mask) in zip(self.images.batches(parts), parts, strict=True):
            yield batch, mask


@dataclass
class FeatureBatches:
    """Batches of features, which steps pass through the heads only.

    Args:
        epochs: the features of every epoch of the training.
        evaluated: the features of validation and test images.
        records: the data set, for labels.
        order: of the training.
        part_size: number of images of an evaluation batch.
        extra_layers: whether the features are those of the extra layers, see
            `agenet.models.classifier.Classifier.both_features`.
        sharding: of a batch.
        epochs_found: see `Batches`.
    """

    epochs: list[View]
    evaluated: View
    records: Records
    order: TrainingOrder
    part_size: int
    extra_layers: bool
    sharding: jax.sharding.Sharding
    epochs_found: int

    def training(self, step: int) -> Generator[Batch, None, None]:
        steps_per_epoch = self.order.steps_per_epoch
        view = self.epochs[step // steps_per_epoch]
        for number, rows in enumerate(self.order.batches(step), step):
            previous, view = view, self.epochs[number // steps_per_epoch]
            if view is not previous:
                previous.free_memory()
            yield self._batch(view, rows, None)

    def evaluation(self, rows: np.ndarray) -> Iterator[tuple[Batch, np.ndarray]]:
        for part, mask in evaluation_batches(rows, self.part_size):
            yield self._batch(self.evaluated, part, mask), mask

    def _batch(self, view: View, rows: np.ndarray, mask: np.ndarray | None) -> Batch:
        both = view.read(rows).reshape(len(rows), 2, -1)
        features = np.ascontiguousarray(both[:, int(self.extra_layers)])
        columns = label_columns(self.records, rows, mask) | {"features": features}
        return jax.device_put(columns, self.sharding)


def cached_rows(splits: Splits, test_views: int) -> np.ndarray:
    """Rows [N] of evaluations that use cached features; a test in several views uses images."""
    tested = splits.test if test_views == 1 else splits.test[:0]
    return np.concatenate([splits.validation, tested])


def reason_for_images(config: RunConfig, backbone_is_frozen: bool) -> str:
    """Why images pass through the whole network in every step; empty if features can be cached."""
    if not backbone_is_frozen:
        return "the backbone is trained"
    if config.feature_cache == "off":
        return "feature_cache is off"
    if config.augment.mixup or config.augment.cutmix:
        return f"{'mixup' if config.augment.mixup else 'CutMix'} mixes images"
    if config.dataset.sampling != "uniform":
        return "balanced sampling augments repeated images anew"
    if config.distill.teacher and not is_file_of_predictions(config.distill.teacher):
        return "the teacher sees images"
    # Their caches may differ.
    return "there are several processes" if jax.process_count() > 1 else ""


def create_batches(
    experiment: Experiment, variables: Any, *, step: int, show_progress: bool
) -> Batches:
    """Batches of cached features if that is possible, otherwise of images; logs which.

    Args:
        experiment: the run.
        variables: its parameters and batch statistics, which may be donated afterwards.
        step: where the training starts or resumes.
        show_progress: draw a progress bar while decoding.
    """
    order, part_size = experiment.training_order, experiment.part_size
    load_images = functools.cache(lambda: experiment.load_images(progress=show_progress))
    if reason := reason_for_images(experiment.config, experiment.backbone_is_frozen):
        if experiment.backbone_is_frozen:
            log.info("features: computed for every step, as %s", reason)
        return ImageBatches(load_images(), order, part_size)
    root = cache_dir() / "features"
    epochs, evaluation = _create_views(experiment, variables, root, load_images)
    views = [*epochs, evaluation]
    obstacle = find_obstacle(root, views, experiment.config.feature_cache_bytes)
    if obstacle:
        log.info("features: computed for every step, because %s", obstacle)
        return ImageBatches(load_images(), order, part_size)
    lengths = [experiment.plan.steps_per_epoch] * len(epochs)
    lengths[-1] += experiment.plan.total_steps - sum(lengths)
    cached = [
        view.holds(length * order.batch_size) for view, length in zip(epochs, lengths, strict=True)
    ]
    log.info(
        "features: computed once, %.2f GB in %s; %d of %d epochs are cached",
        sum(view.nbytes for view in views) / 1e9,
        root,
        sum(cached),
        len(epochs),
    )
    remaining = cached[step // experiment.plan.steps_per_epoch :]
    if not (all(remaining) and evaluation.holds(len(evaluation.rows))):
        load_images()  # Now: its time counts neither as training nor as validation.
    return FeatureBatches(
        epochs=epochs,
        evaluated=evaluation,
        records=experiment.records,
        order=order,
        part_size=part_size,
        extra_layers=experiment.config.model.extra_layers,
        sharding=batch_sharded(experiment.mesh),
        epochs_found=sum(cached),
    )


def _create_views(
    experiment: Experiment, variables: Any, root: Path, load_images: Callable[[], ImageSource]
) -> tuple[list[View], View]:
    """The features of every epoch, in the order of its batches, and of evaluated images."""
    config = experiment.config
    # Copied, because a training step donates the state that it is given.
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
            for batch in load_images().batches(parts)
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
        "jax": jax.__version__,  # Versions may draw different random numbers.
        "backend": jax.default_backend(),  # Backends round differently.
        "weights": hash_weights(backbone),
        "model": {
            "name": config.model.name,
            "flavour": config.model.flavour,
            "dtype": config.model.dtype,
        },
        "data": identify_data(experiment.records),
        "input": {
            "size": config.input.size,
            "crop_size": experiment.crop_size,
            "mean": list(config.input.mean),
            "std": list(config.input.std),
        },
    }
    # Without augmentations that were added later and are off: earlier caches stay valid.
    augment = {
        name: value
        for name, value in dataclasses.asdict(config.augment).items()
        if name == "mixup" or ADDED_FIELDS.get(f"augment.{name}") != value
    }
    of_training = {"augment": augment, "seed": config.seed}
    create = functools.partial(View, root, width=2 * shape.shape[-1])
    epochs = [
        create(
            f"epoch_{epoch}",
            source | of_training | {"epoch": epoch},
            experiment.training_order.epoch(epoch),
            compute=functools.partial(compute, epoch=epoch),
        )
        for epoch in range(experiment.plan.epochs)
    ]
    return epochs, create(
        "evaluation",
        source,
        cached_rows(experiment.splits, config.test_views),
        compute=functools.partial(compute, epoch=None),
    )
