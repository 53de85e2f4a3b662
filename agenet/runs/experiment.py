"""What a config stands for: the data, the network and the compiled steps of one run."""

import math
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from agenet.data.augment import (
    VIEWS,
    Augmentation,
    Transform,
    make_eval_transform,
    make_train_transform,
    make_views_transform,
)
from agenet.data.decoding import available_cores
from agenet.data.order import steps_per_epoch
from agenet.data.placement import ImageSource, check_placement, load_images
from agenet.data.records import Records, join_records, open_records
from agenet.data.splits import Splits, count_leaked, describe_splits, make_splits
from agenet.data.stream import StreamedImages
from agenet.distributed.mesh import check_batch_size, create_mesh, place, replicated
from agenet.errors import UserError
from agenet.evaluation.metrics import LAST
from agenet.labels import HEADS, TASK_CLASSES
from agenet.models import create_model, option_names
from agenet.models.classifier import Classifier
from agenet.runs.feature_cache import check_fields as check_feature_fields
from agenet.runs.identity import data_set_names, digest_weights
from agenet.runs.initial_weights import Initial, find_initial
from agenet.runs.lineage import TrainedOn, check_not_seen, leaves_out_the_same, trained_on
from agenet.training.freeze import count_frozen, split_params
from agenet.training.losses import (
    CLASS_WEIGHTS,
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
from agenet.weights.load import below, load_into

# RGB, 0 to 255, where neither config nor weights say otherwise.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Of the computation; parameters are float32 always.
DTYPES = ("float32", "bfloat16")


def parse_tasks(tasks: str) -> tuple[str, ...]:
    """The names in "age,gender", in the fixed order of `TASK_CLASSES`.

    Raises:
        UserError: for none or an unknown one.
    """
    names = {name.strip() for name in tasks.split(",")}
    if not names or not names <= TASK_CLASSES.keys():
        raise UserError(f'tasks "{tasks}" must be "age", "gender" or "age,gender"')
    return tuple(task for task in TASK_CLASSES if task in names)


def validation_metrics(tasks: Sequence[str]) -> list[str]:
    """The scalars of a validation, any of which the best state can be chosen by."""
    names = ["loss", "accuracy"]
    for task in tasks:
        names += [f"{task}_loss", f"{task}_accuracy"]
        names += ["age_one_off"] if task == "age" else []
    return [f"validation/{name}" for name in names]


@dataclass(frozen=True)
class Experiment:
    """Everything that follows from a config before a picture is decoded."""

    config: ml_collections.ConfigDict
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
    found: Initial | None  # initial weights, if they were opened already

    @cached_property
    def initial(self) -> Initial | None:
        """What the parameters come from; None for chance."""
        return self.found or _find_initial(self.config)

    @cached_property
    def train_step(self) -> TrainStep:
        return make_train_step(
            self.model,
            self.tx,
            self.train_transform,
            heads=self.heads,
            seed=self.config.seed,
            steps_per_epoch=self.steps_per_epoch,
            mesh=self.mesh,
            recipe=Recipe(
                accumulate=self.config.accumulate,
                mixup=self.config.augment.mixup,
                label_smoothing=self.config.label_smoothing,
                class_weights=self._class_weights(),
                ema=self.config.ema,
            ),
        )

    @cached_property
    def eval_step(self) -> EvalStep:
        return make_eval_step(self.model, self.eval_transform, heads=self.heads, mesh=self.mesh)

    @cached_property
    def test_step(self) -> EvalStep:
        """The evaluation step of the report, on pictures where it has several views of them."""
        views = self.config.test_views
        if views == 1:
            return self.eval_step
        transform = make_views_transform(self.crop_size, *self._normalization, views)
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
        augmentation = Augmentation(**self.config.augment.to_dict())
        return make_train_transform(self.crop_size, *self._normalization, augmentation)

    @cached_property
    def eval_transform(self) -> Transform:
        return make_eval_transform(self.crop_size, *self._normalization)

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
        """The state before the first step, on every device, with what is pre-trained loaded.

        Raises:
            UserError: pre-trained weights cannot be had or do not fit.
        """
        initial = self.initial
        new = tuple(filter(None, map(str.strip, self.config.new_parts.split(","))))

        def create() -> dict[str, Any]:
            variables = create_variables(self.model, self.crop_size, self.config.seed)
            if self.heads.get("age") == "distribution":
                # Ranges never tell the years within them apart; what is told of them stays.
                rows = self.splits.train
                shares = estimate_age_distribution(
                    self.records.age_low[rows], self.records.age_high[rows]
                )
                variables["params"]["heads"]["age"]["bias"] = jnp.log(jnp.float32(shares))
            return variables

        def create_new() -> dict[str, Any]:
            fresh = flatten_dict(create(), sep="/")
            return {name: leaf for name, leaf in fresh.items() if below(name, new)}

        on_all = replicated(self.mesh)
        if initial is None:
            variables = jax.jit(create, out_shardings=on_all)()
        else:
            _, frozen = split_params(jax.eval_shape(create)["params"], self.model.frozen)
            if any(below(f"params/{name}", new) for name in flatten_dict(frozen, sep="/")):
                raise UserError(
                    f'new_parts "{self.config.new_parts}" and freeze "{self.config.freeze}" have '
                    "parts in common, which would stay random: free them, or leave them out"
                )
            # Not all of it: to compile what draws a backbone takes longer than anything else here.
            run = initial.run
            if run is None or not leaves_out_the_same(run, self.identity()):
                check_not_seen(initial.trained_on, self.records, self.splits)
            if run is not None:
                self._check_heads(run["config"]["heads"], new)
            fresh = jax.device_get(jax.jit(create_new)())
            shapes = flatten_dict(jax.eval_shape(create), keep_empty_nodes=True, sep="/")
            template = unflatten_dict(shapes | fresh, sep="/")
            variables = place(load_into(template, initial.read(), new), on_all)
        return jax.jit(self._create_state, out_shardings=on_all)(variables)

    def _create_state(self, variables: dict[str, Any]) -> TrainState:
        return create_state(self.model, self.tx, variables, average=self.config.ema > 0)

    def _check_heads(self, earlier: Mapping[str, str], new: Sequence[str]) -> None:
        for task, head in self.heads.items():
            if not below(f"params/heads/{task}/kernel", new) and earlier[task] != head:
                raise UserError(
                    f"init: that run has the head {earlier[task]} for {task}, this one {head}: "
                    f"give --config.heads.{task}={earlier[task]}, or --config.new_parts=heads"
                )

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of a state, all that restoring one needs."""

        def create() -> TrainState:
            variables = create_variables(self.model, self.crop_size, self.config.seed)
            return self._create_state(variables)

        on_all = replicated(self.mesh)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_all),
            jax.eval_shape(create),
        )

    def load_pictures(self, *, progress: bool) -> ImageSource:
        """The data set's pictures where the config wants them; logs where that is and why."""
        return load_images(
            self.records,
            size=self.config.input.size,
            mesh=self.mesh,
            placement=self.config.input.placement,
            progress=progress,
        )

    def stream_pictures(self) -> StreamedImages:
        """The data set's pictures without decoding any that is not asked for."""
        return StreamedImages(self.records, size=self.config.input.size, mesh=self.mesh)

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether the whole of it is."""
        backbone = self.model.backbone
        return backbone.frozen_stages == len(backbone.STAGES)

    @property
    def part_size(self) -> int:
        """How many pictures pass the network at once."""
        return self.config.batch_size // self.config.accumulate

    def to_steps(self, duration: str) -> int:
        """A duration of the config in steps, at least one."""
        steps = to_steps(
            duration, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )
        return max(steps, 1)

    def describe(self) -> dict[str, Any]:
        """What was trained on what: the JSON-serialisable head of a report."""
        params = self.abstract_state().params
        trained, _ = split_params(params, self.model.frozen)
        dataset = self.config.dataset
        return {
            "config": self.config.to_dict(),
            "dataset": {
                "name": self.records.name,
                "notice": self.records.notice,
                "labels": dataset.labels,
                "protocol": dataset.protocol,
                "test_fold": dataset.test_fold,
                "seed": self.config.seed,
                "counts": describe_splits(self.records, self.splits, self.tasks),
                "leakage": {
                    "test_faces": len(self.splits.test),
                    "seen_subject": count_leaked(self.records, self.splits),
                },
            },
            "model": {
                "name": self.config.model.name,
                "flavour": self.config.model.flavour,
                "initial": self.config.init,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "trained": sum(leaf.size for leaf in jax.tree.leaves(trained)),
            },
            "machine": describe_machine(),
        }

    def describe_initial(self) -> dict[str, Any]:
        """What is kept of the weights that a run begins with: their digest and whom they saw."""
        seen = self.initial.trained_on if self.initial else {}
        return {"digest": digest_weights(self.config.init), "data": sorted(seen)}

    def trained_on(self) -> TrainedOn:
        """Whom this run is trained on, with those of the runs that it starts from."""
        earlier = self.initial.trained_on if self.initial else {}
        return trained_on(self.records, self.splits, earlier)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return {
            "config": self.config.to_dict(),
            "dataset": {
                "name": self.records.name,
                "fingerprint": self.records.fingerprint(),
                "pictures": self.records.checksum(),
            },
            "splits": {name: zlib.crc32(rows) for name, rows in vars(self.splits).items()},
            "classes": {task: list(TASK_CLASSES[task]) for task in self.tasks},
        }

    @property
    def _normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.config.input.mean, self.config.input.std

    @property
    def heads(self) -> dict[str, str]:
        """Which head every task has."""
        return {task: self.config.heads[task] for task in self.tasks}


def create_experiment(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Experiment:
    """Opens the data set and builds the network, checking the config on the way.

    What the config leaves to its initial weights is filled in, see `configs/default.py`.

    Raises:
        UserError: whatever in the config or the data does not fit.
    """
    mesh = mesh or create_mesh()
    tasks = parse_tasks(config.tasks)
    _check_fields(config, tasks)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    initial = _ask_weights(config)
    model = _create_model(config, tasks)
    config.model.flavour = model.backbone.flavour
    crop_size = config.input.crop_size or model.backbone.input_size
    config.input.size = config.input.size or round(crop_size * 8 / 7)
    if not 0 < crop_size <= config.input.size:
        raise UserError(
            f"input.size {config.input.size} is smaller than the {crop_size} pixels that "
            f"{config.model.name} takes: use --config.input.size={crop_size} or more, or a smaller "
            "--config.input.crop_size"
        )
    if config.test_views == max(VIEWS) and crop_size == config.input.size:
        raise UserError(
            f"test_views {config.test_views}: the crop, {crop_size} pixels, is the whole picture: "
            "use --config.test_views=2"
        )
    dataset = config.dataset
    records, *extra = (
        open_records(name, dataset.data_dir, dataset.labels) for name in data_set_names(dataset)
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
    for name in ("evaluate_every", "checkpoint_every", "log_every", "patience"):
        if config[name] or name != "patience":
            experiment.to_steps(config[name])  # Raises for what is not a duration.
    return experiment


def _create_model(config: ml_collections.ConfigDict, tasks: Sequence[str]) -> Classifier:
    options = config.model.to_dict()
    name, dtype = options.pop("name"), jnp.dtype(options.pop("dtype"))
    # Options of other networks are left aside.
    options = {key: options[key] for key in option_names(name) & options.keys()}
    heads = {task: config.heads[task] for task in tasks}
    outputs, options["ordinal"] = describe_heads(heads)
    whole = create_model(name, outputs, dtype=dtype, **options)
    frozen = count_frozen(config.freeze, len(whole.backbone.STAGES))
    return create_model(name, outputs, dtype=dtype, frozen_stages=frozen, **options)


def take_from_weights(config: ml_collections.ConfigDict, filled: Mapping[str, Any]) -> None:
    """Fills in what a config leaves to its initial weights, as it was filled in before."""
    config.init, config.model.flavour = filled["init"], filled["model"]["flavour"]
    config.input.mean = tuple(filled["input"]["mean"])
    config.input.std = tuple(filled["input"]["std"])


def _ask_weights(config: ml_collections.ConfigDict) -> Initial | None:
    """Fills in what a config leaves to its initial weights, opening them only if need be."""
    if config.model.flavour and config.input.mean and config.input.std:
        return None
    initial = _find_initial(config)
    config.input.mean = config.input.mean or (initial.mean if initial else IMAGENET_MEAN)
    config.input.std = config.input.std or (initial.std if initial else IMAGENET_STD)
    if initial is not None:
        config.init, config.model.flavour = initial.init, initial.flavour
    return initial


def _find_initial(config: ml_collections.ConfigDict) -> Initial | None:
    return find_initial(config.init, config.model.name, config.model.flavour)


def _check_fields(config: ml_collections.ConfigDict, tasks: Sequence[str]) -> None:
    # Each raises for what it cannot take.
    Augmentation(**config.augment.to_dict())
    option_names(config.model.name)
    check_feature_fields(config)
    check_placement(config.input.placement)
    metrics = validation_metrics(tasks)
    if config.best not in (LAST, *metrics):
        raise UserError(
            f'best "{config.best}" is not measured: use "{LAST}" or one of {", ".join(metrics)}'
        )
    if config.patience and config.best == LAST:
        raise UserError(
            f'patience "{config.patience}" has nothing to wait for, as best is "{LAST}": use '
            "--config.best=validation/loss, or no patience"
        )
    for name in ("label_smoothing", "ema"):
        if not 0 <= config[name] < 1:
            raise UserError(f"{name} {config[name]:g} must be a number from 0 to below 1")
    if config.class_weights not in CLASS_WEIGHTS:
        raise UserError(
            f'class_weights "{config.class_weights}" is not known: use one of {CLASS_WEIGHTS}'
        )
    if config.test_views not in VIEWS:
        raise UserError(f"test_views {config.test_views} is not known: use one of {VIEWS}")
    if config.model.dtype not in DTYPES:
        raise UserError(f'model.dtype "{config.model.dtype}" is not known: use one of {DTYPES}')
    if config.init == "random" and config.freeze != "none":
        raise UserError(f'freeze "{config.freeze}" of random weights: give --config.init, too')
    for task in tasks:
        if config.heads[task] not in HEADS[task]:
            raise UserError(
                f'heads.{task} "{config.heads[task]}" is not known: use one of '
                f"{', '.join(HEADS[task])}"
            )
    for name in ("mean", "std"):
        values = config.input[name]
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if len(values) not in (0, 3) or not numbers:
            raise UserError(f"input.{name} {values} must be three numbers, for R, G, B")
    if any(value <= 0 for value in config.input.std):
        raise UserError(f"input.std {config.input.std} must be positive")


def describe_machine() -> dict[str, Any]:
    """Devices, processor and versions, for a report."""
    devices, processes = jax.devices(), jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}{of}",
        "processor": f"{_processor_name()}, {available_cores()} cores",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
        },
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
