"""The parts of one run: data, network, optimizer, plan, and the compiled steps made from them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from agenet.data.augment import (
    Transform,
    make_eval_transform,
    make_train_transform,
    make_views_transform,
)
from agenet.data.order import TrainingOrder
from agenet.data.placement import ImageSource, load_images
from agenet.data.records import Records
from agenet.data.splits import Splits
from agenet.data.stream import StreamedImages
from agenet.distributed.mesh import replicated
from agenet.errors import UserError
from agenet.labels import TASK_CLASSES, UNKNOWN
from agenet.models.classifier import Classifier
from agenet.runs.compilation import LoggedFirstCall
from agenet.runs.config import IN_YEARS, RunConfig, to_dict
from agenet.runs.evaluator import exact_ages
from agenet.runs.identity import identify
from agenet.runs.initial_weights import InitialWeights, find_initial
from agenet.runs.teacher import FoundTeacher, open_teacher
from agenet.training.losses import BY_YEAR, balanced_weights, known_classes
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


@dataclass(frozen=True)
class Plan:
    """The length of a run and when it does what, in steps.

    Attributes:
        patience: the run stops after so many steps without improvement; None if it never does.
    """

    steps_per_epoch: int
    total_steps: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    patience: int | None

    @property
    def epochs(self) -> int:
        """Number of epochs, the last of which may be incomplete."""
        return -(-self.total_steps // self.steps_per_epoch)


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
    records: Records
    splits: Splits
    model: Classifier
    crop_size: int
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    plan: Plan
    found: InitialWeights | None

    @cached_property
    def initial(self) -> InitialWeights | None:
        """The initial weights; None if parameters are initialised at random."""
        config = self.config
        return self.found or find_initial(config.init, config.model.name, config.model.flavour)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.config.task_names

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

    @cached_property
    def training_order(self) -> TrainingOrder:
        config = self.config
        return TrainingOrder(self.splits.train, config.batch_size, config.seed, self._strata())

    @cached_property
    def teacher(self) -> FoundTeacher | None:
        """The teacher, on the devices; None if the run learns from labels alone."""
        if not self.config.distill.teacher:
            return None
        return open_teacher(
            self.config.distill.teacher,
            records=self.records,
            splits=self.splits,
            identity=self.identity,
            tasks=self.tasks,
            images=self.config.input,
            mesh=self.mesh,
        )

    @cached_property
    def measures_years(self) -> bool:
        """Whether validations measure errors in years.

        They do where at least half of the faces for validation have an age in years, or where the
        best state is chosen by such an error: in Adience one face in eighty has one.
        """
        known = exact_ages(self.records, self.splits.validation) != UNKNOWN
        return "age" in self.tasks and (known.mean() >= 0.5 or self.config.best in IN_YEARS)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return identify(to_dict(self.config), self.records, self.splits, self.tasks)

    @cached_property
    def train_step(self) -> TrainStep:
        config = self.config
        step = make_train_step(
            self.model,
            self.tx,
            self.train_transform,
            heads=self.heads,
            seed=config.seed,
            steps_per_epoch=self.plan.steps_per_epoch,
            mesh=self.mesh,
            recipe=Recipe(
                accumulate=config.accumulate,
                mixup=config.augment.mixup,
                cutmix=config.augment.cutmix,
                label_smoothing=config.label_smoothing,
                class_weights=self._class_weights(),
                repeats=config.dataset.sampling != "uniform",
                teacher=self.teacher.teacher if self.teacher else None,
                distill_weight=config.distill.weight,
                temperature=config.distill.temperature,
                ema=config.ema,
            ),
        )
        return LoggedFirstCall(step, "the training step")

    @cached_property
    def eval_step(self) -> EvalStep:
        return self._make_eval_step(self.eval_transform)

    @cached_property
    def test_step(self) -> EvalStep:
        """The evaluation step of the final test, which may average several views of an image."""
        views = self.config.test_views
        if views == 1:
            return self.eval_step
        config = self.config.input
        transform = make_views_transform(self.crop_size, config.mean, config.std, views)
        return self._make_eval_step(transform)

    def _make_eval_step(self, transform: Transform) -> EvalStep:
        step = make_eval_step(self.model, transform, heads=self.heads, mesh=self.mesh)
        return LoggedFirstCall(step, "the evaluation step")

    @cached_property
    def feature_step(self) -> FeatureStep:
        step = make_feature_step(
            self.model,
            self.train_transform,
            self.eval_transform,
            seed=self.config.seed,
            mesh=self.mesh,
        )
        return LoggedFirstCall(step, "the backbone, whose features are computed once")

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
        return {
            task: balanced_weights(self._training_classes(task, head), len(TASK_CLASSES[task]))
            for task, head in self.heads.items()
        }

    def _training_classes(self, task: str, head: str) -> np.ndarray:
        """The class of each training face, int [N], or `UNKNOWN`, see `known_classes`."""
        records, rows = self.records, self.splits.train
        columns = {**records.labels, "age_low": records.age_low, "age_high": records.age_high}
        batch = {name: column[rows] for name, column in columns.items()}
        batch["mask"] = np.ones(len(rows), bool)
        return np.asarray(known_classes(task, head, batch))

    def _strata(self) -> np.ndarray | None:
        """What the config's sampling balances, for each training face, see `TrainingOrder`."""
        sampling = self.config.dataset.sampling
        if sampling == "uniform":
            return None
        # Age ranges have a group even where they are none of the eight groups.
        heads = {"age": BY_YEAR[0]} if sampling == "age_balanced" else self.heads
        strata = np.zeros(len(self.splits.train), np.int64)
        for task, head in heads.items():
            classes = self._training_classes(task, head)
            joint = strata * len(TASK_CLASSES[task]) + classes
            strata = np.where((strata == UNKNOWN) | (classes == UNKNOWN), UNKNOWN, joint)
        if (strata == UNKNOWN).all():
            raise UserError(
                f'dataset.sampling "{sampling}": no training face has the labels of '
                f"{' and '.join(heads)}: use --config.dataset.sampling=uniform"
            )
        return strata

    def create_state(self, variables: dict[str, Any]) -> TrainState:
        """The state before the first step of a training that starts from `variables`."""
        return create_state(self.model, self.tx, variables, average=self.config.ema > 0)

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of a state: all that is needed to restore one."""

        def create() -> TrainState:
            return self.create_state(create_variables(self.model, self.crop_size, self.config.seed))

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
