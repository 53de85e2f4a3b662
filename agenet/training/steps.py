"""Compiled steps: one of training, one of evaluation, and one of a frozen backbone.

A batch is a dict of `image` uint8 [B, H, W, 3] RGB, `row` int32 [B] of the data set, labels int32
[B] for each task, `age_low` and `age_high` int32 [B] in whole years (-1: unknown), and `mask` bool
[B] (False: padding). Precomputed pooled features, `features` float32 [B, D], may replace `image`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from agenet.data.augment import Transform, example_keys
from agenet.distributed.mesh import batch_sharded, replicated, split_microbatches
from agenet.models.classifier import Classifier
from agenet.training.distillation import StepWithTeacher, Teacher
from agenet.training.freeze import merge_params, split_params
from agenet.training.losses import log_probabilities
from agenet.training.mixing import draw_mixing, mix
from agenet.training.objective import Objective
from agenet.training.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], dict[str, jax.Array]]
FeatureStep = Callable[[Any, Batch, int | None], jax.Array]


@dataclass(frozen=True)
class Recipe:
    """Options of a training step.

    Attributes:
        accumulate: number of microbatches for gradient accumulation, which saves memory, but
            little on CPUs. Batch normalisation and dropout work on each microbatch separately;
            otherwise the gradient is that of the whole batch.
        mixup, cutmix: their alphas, 0 for none, see `agenet.training.mixing`. Each image and its
            loss are mixed with the previous image of the batch. The images of the whole batch are
            transformed at once.
        label_smoothing, class_weights: see `Objective`.
        repeats: whether an image can come more than once in an epoch or batch. Augmentation is then
            a function of step and position, so that no two are alike.
        teacher: to learn from; None for none.
        distill_weight, temperature: see `Objective`.
        ema: decay of the exponential moving averages of parameters and batch statistics, 0 for
            none. In step n, from 0, it is at most (1 + n) / (10 + n), as in TensorFlow.
    """

    accumulate: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    repeats: bool = False
    teacher: Teacher | None = None
    distill_weight: float = 0.0
    temperature: float = 1.0
    ema: float = 0.0


def make_train_step(
    model: Classifier,
    tx: optax.GradientTransformation,
    transform: Transform,
    *,
    heads: Mapping[str, str],
    seed: int,
    steps_per_epoch: int,
    mesh: Mesh,
    recipe: Recipe = Recipe(),
) -> TrainStep:
    """Returns a compiled `train_step(state, batch) -> (state, sums)`, which donates its state.

    Randomness is a function of the seed and, for augmentation, of epoch and row (but see
    `Recipe.repeats`), otherwise of `state.step`. The sums are scalars: `step`, `loss` and
    `gradient_norm` (before clipping) of this step and, for each task over known labels,
    `<task>_loss` (the negative log-likelihood of the class, for every kind of head),
    `<task>_correct` and `<task>_count`. The labels of a mixed image count by their proportions.

    Args:
        model: the network; `model.frozen` parameters do not change.
        tx: the optimizer.
        transform: the augmentation, see `agenet.data.augment.make_train_transform`.
        heads: the kind of head of each task, see `agenet.training.losses`.
        seed: of all randomness.
        steps_per_epoch: to derive the epoch from the step.
        mesh: the devices that batches are divided over.
        recipe: further options.
    """
    augment_rng, dropout_rng, mix_rng = _random_streams(seed)
    # On CPUs, XLA does not optimise convolutions in loops, where the gradients of kernels take a
    # hundred times as long: unroll the loop.
    unrolled = recipe.accumulate if mesh.devices.flat[0].platform == "cpu" else 1
    teacher, mixes = recipe.teacher, bool(recipe.mixup or recipe.cutmix)
    objective = Objective(
        heads,
        recipe.label_smoothing,
        recipe.class_weights,
        recipe.distill_weight if teacher else 0.0,
        recipe.temperature,
    )

    def augmented(batch: Batch, epoch: jax.Array) -> jax.Array:
        return transform(batch["image"], example_keys(augment_rng, epoch, batch["row"]))

    def inputs_of(part: Batch, epoch: jax.Array) -> tuple[jax.Array, str]:
        """Features or images, and the network's method for them."""
        if "features" in part:
            return part["features"], "classify"
        return part["mixed"] if "mixed" in part else augmented(part, epoch), "__call__"

    def forward(variables: Any, inputs: jax.Array, method: str, rng: jax.Array) -> tuple[Any, Any]:
        """The logits and the new batch statistics."""
        logits, updates = model.apply(
            variables,
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
            method=method,
        )
        return logits, updates.get("batch_stats", {})

    def train_step(
        state: TrainState, batch: Any, arrays: Any = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        epoch = state.step // steps_per_epoch
        if teacher and teacher.takes == "row":
            batch = batch | {"teacher": teacher.predict(arrays, batch["row"])}
        if recipe.repeats:
            epoch = state.step
            batch = batch | {"row": jnp.arange(len(batch["row"]), dtype=jnp.int32)}
        rng = jax.random.fold_in(dropout_rng, state.step)
        trained, frozen = split_params(state.params, model.frozen)
        total_weights = objective.total_weights(batch)
        proportion: jax.typing.ArrayLike = 1.0
        if mixes:
            size = jax.eval_shape(augmented, batch, epoch).shape[1]
            rng_of_step = jax.random.fold_in(mix_rng, state.step)
            proportion, own = draw_mixing(rng_of_step, size, recipe.mixup, recipe.cutmix)
            batch = mix(batch, augmented(batch, epoch), own)

        def loss_fn(
            trained: Any, batch_stats: Any, part: Any, rng: jax.Array
        ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
            variables = {"params": merge_params(trained, frozen), "batch_stats": batch_stats}
            inputs, method = inputs_of(part, epoch)
            logits, batch_stats = forward(variables, inputs, method, rng)
            targets = [(proportion, part)]
            if mixes:
                targets.append((1 - proportion, part["partner"]))
            taught: list[Any] = []
            if teacher and teacher.takes == "row":
                taught = [(weight, target["teacher"]) for weight, target in targets]
            elif teacher:
                taught = [(1.0, teacher.predict(arrays, inputs))]
            loss, sums = objective(logits, targets, total_weights, taught)
            return loss, (batch_stats, sums)

        def gradient(batch_stats: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            """The new batch statistics, and the gradient and sums of a microbatch."""
            grads, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(
                trained, batch_stats, *part
            )
            return batch_stats, (grads, sums)

        if recipe.accumulate == 1:
            batch_stats, (grads, sums) = gradient(state.batch_stats, (batch, rng))
        else:
            parts = split_microbatches(batch, recipe.accumulate, mesh)
            rngs = jax.random.split(rng, recipe.accumulate)
            batch_stats, (grads, sums) = _scan_sum(
                gradient, state.batch_stats, (parts, rngs), unrolled
            )
        sums |= {"step": state.step, "gradient_norm": optax.tree.norm(grads)}
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        average = None
        if recipe.ema:
            decay = jnp.minimum(recipe.ema, (1 + state.step) / (10 + state.step))
            average = _update_average(
                state.average, {"params": trained, "batch_stats": batch_stats}, 1 - decay
            )
        state = TrainState(
            step=state.step + 1,
            params=merge_params(trained, frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
        )
        return state, sums

    shardings = [replicated(mesh), batch_sharded(mesh)]
    step = jax.jit(
        train_step,
        in_shardings=(*shardings, *([replicated(mesh)] if teacher else [])),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    return StepWithTeacher(step, teacher.arrays) if teacher else step


def _scan_sum(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, unroll: int
) -> Any:
    """`jax.lax.scan` that sums the results instead of stacking them."""
    first = jax.tree.map(lambda x: x[0], xs)
    _, shapes = jax.eval_shape(function, carry, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry_and_total: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], None]:
        carry, total = carry_and_total
        carry, result = function(carry, x)
        return (carry, jax.tree.map(jnp.add, total, result)), None

    return jax.lax.scan(add, (carry, zeros), xs, unroll=unroll)[0]


def _update_average(average: Any, new: Any, rate: jax.Array) -> Any:
    """Moves an average towards new values; unlike in optax, equal values stay bitwise equal."""
    return jax.tree.map(lambda old, leaf: old + rate * (leaf - old), average, new)


def make_eval_step(
    model: Classifier, transform: Transform, *, heads: Mapping[str, str], mesh: Mesh
) -> EvalStep:
    """Returns a compiled `eval_step(variables, batch) -> {task: log-probabilities [B, C]}`.

    Args:
        model: the network.
        transform: see `agenet.data.augment.make_eval_transform`. If it gives several views of an
            image, [B, V, S, S, 3], probabilities are averaged over them.
        heads: the kind of head of each task; some add `years`, see `log_probabilities`.
        mesh: the devices that batches are divided over.
    """

    def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        if "features" in batch:
            inputs, method = batch["features"], "classify"
        else:
            inputs, method = transform(batch["image"]), "__call__"
        views = inputs.shape[1] if inputs.ndim == 5 else 1
        if views > 1:
            inputs = inputs.reshape(-1, *inputs.shape[2:])
        logits: Any = model.apply(variables, inputs, train=False, method=method)
        results: dict[str, jax.Array] = {}
        for task, head in heads.items():
            results |= log_probabilities(task, head, logits[task])
        return results if views == 1 else jax.tree.map(lambda a: _mean_of_views(a, views), results)

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )


def _mean_of_views(log_probs: jax.Array, views: int) -> jax.Array:
    """Averages probabilities over views, as logarithms: [B * views, C] to [B, C]."""
    by_image = log_probs.reshape(-1, views, log_probs.shape[-1])
    return jax.nn.logsumexp(by_image, axis=1) - jnp.log(views)


def make_feature_step(
    model: Classifier,
    train_transform: Transform,
    eval_transform: Transform,
    *,
    seed: int,
    mesh: Mesh,
) -> FeatureStep:
    """Returns a compiled `feature_step(variables, batch, epoch) -> float32 [2, B, D]`.

    The result is the pooled features without and with the extra layers, of the images as augmented
    in that epoch of a training with `seed`, or of evaluation if `epoch` is None.
    """
    augment_rng, _, _ = _random_streams(seed)

    def feature_step(variables: Any, batch: Batch, epoch: int | None) -> jax.Array:
        if epoch is None:
            images = eval_transform(batch["image"])
        else:
            images = train_transform(batch["image"], example_keys(augment_rng, epoch, batch["row"]))
        features: Any = model.apply(variables, images, method="both_features")
        return features.astype(jnp.float32)

    return jax.jit(
        feature_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )


def _random_streams(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The keys of augmentation, dropout and mixing."""
    rng = jax.random.key(seed)
    augment_rng, dropout_rng = jax.random.split(rng)
    return augment_rng, dropout_rng, jax.random.fold_in(rng, 2)
