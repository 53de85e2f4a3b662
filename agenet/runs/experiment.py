"""Builds the data, the network and the compiled steps of one run from its configuration."""

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from agenet.data.augment import (
    VIEWS,
    Transform,
    make_eval_transform,
    make_train_transform,
    make_views_transform,
)
from agenet.data.order import TrainingOrder, steps_per_epoch
from agenet.data.placement import ImageSource, load_images
from agenet.data.records import Records, join_records, open_records
from agenet.data.splits import Splits, count_leaked, describe_splits, make_splits
from agenet.data.stream import StreamedImages
from agenet.distributed.mesh import check_batch_size, create_mesh, place, replicated
from agenet.errors import UserError
from agenet.labels import TASK_CLASSES
from agenet.models import create_model, option_names
from agenet.models.classifier import Classifier
from agenet.runs.config import IMAGENET_MEAN, IMAGENET_STD, RunConfig, to_dict
from agenet.runs.identity import digest_weights
from agenet.runs.initial_weights import Initial, find_initial, load_initial
from agenet.runs.lineage import TrainedOn, check_not_seen, has_same_holdout, trained_on
from agenet.runs.machine import describe_machine
from agenet.training.freeze import count_frozen, split_params
from agenet.training.losses import (
    balanced_weights,
    describe_heads,
    estimate_age_distribution,
    known_classes,
)
from agenet.training.optimizers import create_optimizer, create_schedule, to_steps
from agenet.training.state import TrainState, create_state, create_variables
from agenet.training.steps import (
    EvalStep,
    FeatureStep,
    Recipe,
    TrainStep,
    make_eval_step,
    make_feature_step,
    make_train_step,
)
from agenet.weights.load import below


@dataclass(frozen=True)
class Experiment:
    """Everything that follows from a configuration before an image is decoded.

    Attributes:
        config: complete: what was left open has been taken from the initial weights.
        crop_size: side in pixels of the images that the network sees.
        found: the initial weights, if they have been opened already.
    """

    config: RunConfig
    mesh: Mesh
    tasks: tuple[str, ...]
    records: Records
    splits: Splits
    model: Classifier
    crop_size: int
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    steps_per_epoch: int
    total_steps: int
    found: Initial | None

    @cached_property
    def initial(self) -> Initial | None:
        """The initial weights; None if parameters are initialised at random."""
        return self.found or _find_initial(self.config)

    @property
    def heads(self) -> dict[str, str]:
        """The kind of head of each task."""
        return self.config.heads.of(self.tasks)

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether all of the backbone is frozen."""
        backbone = self.model.backbone
        return backbone.frozen_stages == len(backbone.STAGES)

    @property
    def part_size(self) -> int:
        """Number of images that pass through the network at once."""
        return self.config.batch_size // self.config.accumulate

    @property
    def training_order(self) -> TrainingOrder:
        return TrainingOrder(self.splits.train, self.config.batch_size, self.config.seed)

    def to_steps(self, duration: str) -> int:
        """A duration of the config in steps, at least one."""
        steps = to_steps(
            duration, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        return max(steps, 1)

    @cached_property
    def train_step(self) -> TrainStep:
        config = self.config
        return make_train_step(
            self.model,
            self.tx,
            self.train_transform,
            heads=self.heads,
            seed=config.seed,
            steps_per_epoch=self.steps_per_epoch,
            mesh=self.mesh,
            recipe=Recipe(
                accumulate=config.accumulate,
                mixup=config.augment.mixup,
                label_smoothing=config.label_smoothing,
                class_weights=self._class_weights(),
                ema=config.ema,
            ),
        )

    @cached_property
    def eval_step(self) -> EvalStep:
        return make_eval_step(self.model, self.eval_transform, heads=self.heads, mesh=self.mesh)

    @cached_property
    def test_step(self) -> EvalStep:
        """The evaluation step of the final test, which may average several views of an image."""
        views = self.config.test_views
        if views == 1:
            return self.eval_step
        config = self.config.input
        transform = make_views_transform(self.crop_size, config.mean, config.std, views)
        return make_eval_step(self.model, transform, heads=self.heads, mesh=self.mesh)

    @cached_property
    def feature_step(self) -> FeatureStep:
        return make_feature_step(
            self.model,
            self.train_transform,
            self.eval_transform,
            seed=self.config.seed,
            mesh=self.mesh,
        )

    @cached_property
    def train_transform(self) -> Transform:
        config = self.config.input
        return make_train_transform(self.crop_size, config.mean, config.std, self.config.augment)

    @cached_property
    def eval_transform(self) -> Transform:
        return make_eval_transform(self.crop_size, self.config.input.mean, self.config.input.std)

    def _class_weights(self) -> dict[str, np.ndarray]:
        if self.config.class_weights == "none":
            return {}
        records, rows = self.records, self.splits.train
        columns = {**records.labels, "age_low": records.age_low, "age_high": records.age_high}
        batch = {name: column[rows] for name, column in columns.items()}
        batch["mask"] = np.ones(len(rows), bool)
        return {
            task: balanced_weights(
                np.asarray(known_classes(task, head, batch)), len(TASK_CLASSES[task])
            )
            for task, head in self.heads.items()
        }

    def create_state(self) -> TrainState:
        """The state before the first step, on every device, with pre-trained weights loaded.

        Raises:
            UserError: the initial weights cannot be read, do not fit, or were trained on subjects
                that this run validates or tests on.
        """
        on_all = replicated(self.mesh)
        if self.initial is None:
            variables = jax.jit(self._create_variables, out_shardings=on_all)()
        else:
            self._check_initial(self.initial)
            loaded = load_initial(
                self.initial,
                self._create_variables,
                heads=self.heads,
                new_parts=self.config.new_part_names,
            )
            variables = place(loaded, on_all)
        return jax.jit(self._create_state, out_shardings=on_all)(variables)

    def _create_variables(self) -> dict[str, Any]:
        variables = create_variables(self.model, self.crop_size, self.config.seed)
        if self.heads.get("age") == "distribution":
            # Age ranges teach nothing about the years within them: there the prediction stays what
            # it is at the start, so that should be how common each year is.
            rows = self.splits.train
            shares = estimate_age_distribution(
                self.records.age_low[rows], self.records.age_high[rows]
            )
            variables["params"]["heads"]["age"]["bias"] = jnp.log(jnp.float32(shares))
        return variables

    def _create_state(self, variables: dict[str, Any]) -> TrainState:
        return create_state(self.model, self.tx, variables, average=self.config.ema > 0)

    def _check_initial(self, initial: Initial) -> None:
        new_parts = self.config.new_part_names
        params = jax.eval_shape(self._create_variables)["params"]
        _, frozen = split_params(params, self.model.frozen)
        if any(below(f"params/{name}", new_parts) for name in flatten_dict(frozen, sep="/")):
            raise UserError(
                f'new_parts "{self.config.new_parts}" and freeze "{self.config.freeze}" have '
                "parts in common, which would stay random: unfreeze them, or remove them from "
                "new_parts"
            )
        if initial.run is None or not has_same_holdout(initial.run, self.identity()):
            check_not_seen(initial.trained_on, self.records, self.splits)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of a state: all that is needed to restore one."""

        def create() -> TrainState:
            variables = create_variables(self.model, self.crop_size, self.config.seed)
            return self._create_state(variables)

        on_all = replicated(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_all),
            jax.eval_shape(create),
        )

    def load_images(self, *, progress: bool) -> ImageSource:
        """Decodes the images and places them where the config says; logs where and why."""
        return load_images(
            self.records,
            size=self.config.input.size,
            mesh=self.mesh,
            placement=self.config.input.placement,
            progress=progress,
        )

    def stream_images(self) -> StreamedImages:
        """The images, each decoded only when it is asked for."""
        return StreamedImages(self.records, size=self.config.input.size, mesh=self.mesh)

    def describe(self) -> dict[str, Any]:
        """What is trained on what: the first part of a report, JSON-serialisable."""
        config = self.config
        params = self.abstract_state().params
        trained, _ = split_params(params, self.model.frozen)
        return {
            "config": to_dict(config),
            "dataset": {
                "name": self.records.name,
                "notice": self.records.notice,
                "labels": config.dataset.labels,
                "protocol": config.dataset.protocol,
                "test_fold": config.dataset.test_fold,
                "seed": config.seed,
                "counts": describe_splits(self.records, self.splits, self.tasks),
                "leakage": {
                    "test_faces": len(self.splits.test),
                    "seen_subject": count_leaked(self.records, self.splits),
                },
            },
            "model": {
                "name": config.model.name,
                "flavour": config.model.flavour,
                "initial": config.init,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "trained": sum(leaf.size for leaf in jax.tree.leaves(trained)),
            },
            "machine": describe_machine(),
        }

    def describe_initial(self) -> dict[str, Any]:
        """The digest of the initial weights and the data sets that they were trained on."""
        seen = self.initial.trained_on if self.initial else {}
        return {"digest": digest_weights(self.config.init), "data": sorted(seen)}

    def trained_on(self) -> TrainedOn:
        """Subjects that this run is trained on, directly or through its initial weights."""
        earlier = self.initial.trained_on if self.initial else {}
        return trained_on(self.records, self.splits, earlier)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return {
            "config": to_dict(self.config),
            "dataset": {
                "name": self.records.name,
                "fingerprint": self.records.fingerprint(),
                "pictures": self.records.checksum(),
            },
            "splits": {name: zlib.crc32(rows) for name, rows in vars(self.splits).items()},
            "classes": {task: list(TASK_CLASSES[task]) for task in self.tasks},
        }


def create_experiment(config: RunConfig, mesh: Mesh | None = None) -> Experiment:
    """Opens the data set and builds the network.

    Args:
        config: fields that it leaves to the initial weights are filled in.
        mesh: of the devices to use; by default all.

    Raises:
        UserError: the config, the data and the devices do not fit each other.
    """
    mesh = mesh or create_mesh()
    tasks = config.task_names
    check_batch_size(config.batch_size, mesh, config.accumulate)
    config, initial = _fill_from_weights(config)
    model = _create_model(config)
    crop_size = config.input.crop_size or model.backbone.input_size
    size = config.input.size or round(crop_size * 8 / 7)
    config = replace(
        config,
        model=replace(config.model, flavour=model.backbone.flavour),
        input=replace(config.input, size=size),
    )
    _check_sizes(config, crop_size)
    dataset = config.dataset
    records, *extra = (
        open_records(name, dataset.data_dir, dataset.labels) for name in dataset.names
    )
    records = join_records(records, extra) if extra else records
    splits = make_splits(
        records,
        tasks=tasks,
        protocol=dataset.protocol,
        test_fold=dataset.test_fold,
        validation_fraction=dataset.validation_fraction,
        seed=config.seed,
    )
    epoch = steps_per_epoch(len(splits.train), config.batch_size)
    if epoch == 0:
        raise UserError(
            f"batch_size {config.batch_size} is more than the {len(splits.train)} training faces"
        )
    total = to_steps(config.duration, steps_per_epoch=epoch)
    schedule = create_schedule(config.schedule, steps_per_epoch=epoch, total_steps=total)
    experiment = Experiment(
        config=config,
        mesh=mesh,
        tasks=tasks,
        records=records,
        splits=splits,
        model=model,
        crop_size=crop_size,
        schedule=schedule,
        tx=create_optimizer(config.optimizer, schedule),
        steps_per_epoch=epoch,
        total_steps=total,
        found=initial,
    )
    for duration in (config.evaluate_every, config.checkpoint_every, config.log_every):
        experiment.to_steps(duration)  # Raises for anything else than a duration.
    if config.patience:
        experiment.to_steps(config.patience)
    return experiment


def _create_model(config: RunConfig) -> Classifier:
    model = config.model
    options: dict[str, Any] = {
        field.name: getattr(model, field.name) for field in dataclasses.fields(model)
    }
    name, dtype = options.pop("name"), jnp.dtype(options.pop("dtype"))
    # Options of other networks are ignored.
    options = {key: options[key] for key in option_names(name) & options.keys()}
    outputs, options["ordinal"] = describe_heads(config.heads.of(config.task_names))
    whole = create_model(name, outputs, dtype=dtype, **options)
    frozen = count_frozen(config.freeze, len(whole.backbone.STAGES))
    return create_model(name, outputs, dtype=dtype, frozen_stages=frozen, **options)


def _check_sizes(config: RunConfig, crop_size: int) -> None:
    size = config.input.size
    if not 0 < crop_size <= size:
        raise UserError(
            f"input.size {size} is smaller than the {crop_size} pixels that {config.model.name} "
            f"takes: use --config.input.size={crop_size} or more, or a smaller "
            "--config.input.crop_size"
        )
    if config.test_views == max(VIEWS) and crop_size == size:
        raise UserError(
            f"test_views {config.test_views}: the crop, {crop_size} pixels, is the whole image: "
            "use --config.test_views=2"
        )


def take_from_weights(config: RunConfig, filled: Mapping[str, Any]) -> RunConfig:
    """Fills in what a config leaves to its initial weights, from the config of the saved run."""
    return replace(
        config,
        init=filled["init"],
        model=replace(config.model, flavour=filled["model"]["flavour"]),
        input=replace(
            config.input, mean=tuple(filled["input"]["mean"]), std=tuple(filled["input"]["std"])
        ),
    )


def _fill_from_weights(config: RunConfig) -> tuple[RunConfig, Initial | None]:
    """Fills in what a config leaves to its initial weights, which are opened only if needed."""
    images = config.input
    if config.model.flavour and images.mean and images.std:
        return config, None
    initial = _find_initial(config)
    images = replace(
        images,
        mean=images.mean or (initial.mean if initial else IMAGENET_MEAN),
        std=images.std or (initial.std if initial else IMAGENET_STD),
    )
    config = replace(config, input=images)
    if initial is None:
        return config, None
    model = replace(config.model, flavour=initial.flavour)
    return replace(config, init=initial.init, model=model), initial


def _find_initial(config: RunConfig) -> Initial | None:
    return find_initial(config.init, config.model.name, config.model.flavour)
