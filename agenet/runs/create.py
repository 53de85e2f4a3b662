"""Creates a run from its configuration: opens the data, builds the network, plans the steps."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from agenet.data.augment import VIEWS
from agenet.data.config import DatasetConfig
from agenet.data.order import steps_per_epoch
from agenet.data.records import Records, join_records, open_records
from agenet.data.splits import make_splits
from agenet.distributed.mesh import check_batch_size, create_mesh
from agenet.errors import UserError
from agenet.labels import UNKNOWN
from agenet.models import create_model, option_names
from agenet.models.classifier import Classifier
from agenet.runs.config import IMAGENET_MEAN, IMAGENET_STD, IN_YEARS, RunConfig
from agenet.runs.evaluator import exact_ages
from agenet.runs.experiment import Experiment, Plan
from agenet.runs.initial_weights import InitialWeights, find_initial
from agenet.training.freeze import count_frozen
from agenet.training.losses import describe_heads
from agenet.training.optimizers import create_optimizer, create_schedule, to_steps


def create_experiment(config: RunConfig, mesh: Mesh | None = None) -> Experiment:
    """Opens the data set and builds the network.

    Args:
        config: fields that it leaves to the initial weights are filled in.
        mesh: of the devices to use; by default all.

    Raises:
        UserError: the config, the data and the devices do not fit each other.
    """
    mesh = mesh or create_mesh()
    check_batch_size(config.batch_size, mesh, config.accumulate)
    config, initial = _fill_from_weights(config)
    model = _create_model(config)
    if config.optimizer.name == "muon" and model.backbone.frozen_stages == len(
        model.backbone.STAGES
    ):
        raise UserError(
            'optimizer.name "muon" is for the kernels of the backbone, which is frozen: use '
            "--config.optimizer.name=adamw"
        )
    crop_size = config.input.crop_size or model.backbone.input_size
    size = config.input.size or round(crop_size * 8 / 7)
    config = replace(
        config,
        model=replace(config.model, flavour=model.backbone.flavour),
        input=replace(config.input, size=size),
    )
    _check_sizes(config, crop_size)
    dataset = config.dataset
    records = open_data_set(dataset)
    splits = make_splits(
        records,
        tasks=config.task_names,
        protocol=dataset.protocol,
        test_fold=dataset.test_fold,
        validation_fraction=dataset.validation_fraction,
        seed=config.seed,
    )
    if config.best in IN_YEARS and (exact_ages(records, splits.validation) == UNKNOWN).all():
        raise UserError(
            f'best "{config.best}": no face for validation has an age in years: use '
            "--config.best=validation/age_accuracy, or validation/loss"
        )
    epoch = steps_per_epoch(len(splits.train), config.batch_size)
    if epoch == 0:
        raise UserError(
            f"batch_size {config.batch_size} is more than the {len(splits.train)} training faces"
        )
    total = to_steps(config.duration, steps_per_epoch=epoch)
    schedule = create_schedule(config.schedule, steps_per_epoch=epoch, total_steps=total)
    return Experiment(
        config=config,
        mesh=mesh,
        records=records,
        splits=splits,
        model=model,
        crop_size=crop_size,
        schedule=schedule,
        tx=create_optimizer(config.optimizer, schedule, model.backbone.STAGES),
        plan=_create_plan(config, epoch, total),
        found=initial,
    )


def open_data_set(dataset: DatasetConfig) -> Records:
    """Opens the data set and joins those that it adds; raises `UserError` if one is missing."""
    records, *extra = (
        open_records(name, dataset.data_dir, dataset.labels) for name in dataset.names
    )
    return join_records(records, extra) if extra else records


def _create_plan(config: RunConfig, epoch: int, total: int) -> Plan:
    def steps(duration: str) -> int:
        return max(to_steps(duration, steps_per_epoch=epoch, total_steps=total), 1)

    return Plan(
        steps_per_epoch=epoch,
        total_steps=total,
        evaluate_every=steps(config.evaluate_every),
        checkpoint_every=steps(config.checkpoint_every),
        log_every=steps(config.log_every),
        patience=steps(config.patience) if config.patience else None,
    )


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
        model=replace(config.model, flavour=filled["model"].get("flavour", "")),
        input=replace(
            config.input, mean=tuple(filled["input"]["mean"]), std=tuple(filled["input"]["std"])
        ),
    )


def _fill_from_weights(config: RunConfig) -> tuple[RunConfig, InitialWeights | None]:
    """Fills in what a config leaves to its initial weights, which are opened only if needed."""
    images = config.input
    if config.model.flavour and images.mean and images.std:
        return config, None
    initial = find_initial(config.init, config.model.name, config.model.flavour)
    expected = initial.spec.input if initial else None
    images = replace(
        images,
        mean=images.mean or (expected.mean if expected else IMAGENET_MEAN),
        std=images.std or (expected.std if expected else IMAGENET_STD),
    )
    config = replace(config, input=images)
    if initial is None:
        return config, None
    model = replace(config.model, flavour=initial.spec.flavour)
    return replace(config, init=initial.init, model=model), initial
