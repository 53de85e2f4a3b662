"""What runs on the devices: a training step, an evaluation step, a frozen backbone alone.

A batch is a dict: `image` uint8 [B, H, W, 3] RGB, `row` int32 [B] of the data set, one int32 [B]
of labels per task and `age_low` and `age_high` int32 [B], whole years (-1: unknown), and `mask`
bool [B] (False: padding). Where the pooled features of the pictures are known, `features` float32
[B, D] stand for `image`.
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
from agenet.training.freeze import merge_params, split_params
from agenet.training.losses import log_probabilities
from agenet.training.objective import Objective
from agenet.training.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], dict[str, jax.Array]]
FeatureStep = Callable[[Any, Batch, int | None], jax.Array]


@dataclass(frozen=True)
class Recipe:
    """What a training step does beside following the gradient of a batch's loss.

    Attributes:
        accumulate: parts of a batch that pass the network one after the other, for want of memory.
            Batch normalisation sees each by itself, and dropout draws anew; otherwise the
            gradient is that of the undivided batch. On CPUs little memory is saved by it.
        mixup: alpha of Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: each
            picture is mixed with that before it in the batch, all of a batch in one proportion
            that is drawn from Beta(alpha, alpha), and so are their losses; 0: none. The pictures
            of a whole batch are transformed at once for it.
        label_smoothing, class_weights: see `Objective`.
        ema: decay of the averages that the state keeps of parameters and batch statistics, in
            step n from 0 at most (1 + n) / (10 + n), as in TensorFlow; 0: none are kept.
    """

    accumulate: int = 1
    mixup: float = 0.0
    label_smoothing: float = 0.0
    class_weights: Mapping[str, np.ndarray] = field(default_factory=dict)
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
    """Returns `train_step(state, batch) -> (state, sums)`, compiled; the given state is donated.

    The loss is that of `Objective`; `heads` says for each task which head it has,
    see `agenet.training.losses`. All randomness follows from the seed: augmentation from epoch and
    row, all else from `state.step`. The sums are scalars: `step`, `loss` and `gradient_norm` of
    this step, the latter before any clipping, and per task, over known labels, `<task>_loss` (the
    negative log-likelihood of the class, whatever the head and the recipe), `<task>_correct` and
    `<task>_count`; of a mixed picture each label counts by its proportion. What is frozen passes
    through.
    """
    augment_rng, dropout_rng, mixup_rng = _random_streams(seed)
    # XLA brings convolutions into the form that CPUs are fast at only outside of loops: inside,
    # the gradients of kernels take a hundred times as long.
    unrolled = recipe.accumulate if mesh.devices.flat[0].platform == "cpu" else 1
    objective = Objective(heads, recipe.label_smoothing, recipe.class_weights)

    def augmented(batch: Batch, epoch: jax.Array) -> jax.Array:
        return transform(batch["image"], example_keys(augment_rng, epoch, batch["row"]))

    def forward(variables: Any, part: Batch, epoch: jax.Array, rng: jax.Array) -> tuple[Any, Any]:
        """Logits, and the batch statistics afterwards."""
        if "features" in part:
            inputs, method = part["features"], "classify"
        elif "mixed" in part:
            inputs, method = part["mixed"], "__call__"
        else:
            inputs, method = augmented(part, epoch), "__call__"
        logits, updates = model.apply(
            variables,
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
            method=method,
        )
        return logits, updates.get("batch_stats", {})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        epoch = state.step // steps_per_epoch
        rng = jax.random.fold_in(dropout_rng, state.step)
        trained, frozen = split_params(state.params, model.frozen)
        total_weights = objective.total_weights(batch)
        share: jax.typing.ArrayLike = 1.0
        if recipe.mixup:
            mixup_key = jax.random.fold_in(mixup_rng, state.step)
            share = jax.random.beta(mixup_key, recipe.mixup, recipe.mixup)
            batch = _mix(batch, augmented(batch, epoch), share)

        def loss_fn(
            trained: Any, batch_stats: Any, part: Any, rng: jax.Array
        ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
            variables = {"params": merge_params(trained, frozen), "batch_stats": batch_stats}
            logits, batch_stats = forward(variables, part, epoch, rng)
            truths = [(share, part)]
            if recipe.mixup:
                truths.append((1 - share, part["partner"]))
            loss, sums = objective(logits, truths, total_weights)
            return loss, (batch_stats, sums)

        def gradient(batch_stats: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            """Batch statistics afterwards; the part's gradient and sums."""
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
            average = _approach(
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

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def _mix(batch: Batch, images: jax.Array, share: jax.typing.ArrayLike) -> Any:
    """Pictures [B, S, S, 3] mixed with those before them, whose labels are the `partner`'s."""

    def before(column: jax.Array) -> jax.Array:
        return jnp.roll(column, 1, axis=0)

    labels = {name: column for name, column in batch.items() if name not in ("image", "row")}
    return labels | {
        "mixed": share * images + (1 - share) * before(images),
        "partner": jax.tree.map(before, labels),
    }


def _scan_sum(
    function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, unroll: int
) -> Any:
    """As `jax.lax.scan`, but the results are added up instead of stacked."""
    first = jax.tree.map(lambda x: x[0], xs)
    _, shapes = jax.eval_shape(function, carry, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(both: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], None]:
        carry, total = both
        carry, found = function(carry, x)
        return (carry, jax.tree.map(jnp.add, total, found)), None

    return jax.lax.scan(add, (carry, zeros), xs, unroll=unroll)[0]


def _approach(average: Any, new: Any, rate: jax.Array) -> Any:
    """A moving average; what did not change stays what it was, to the bit."""
    return jax.tree.map(lambda old, leaf: old + rate * (leaf - old), average, new)


def make_eval_step(
    model: Classifier, transform: Transform, *, heads: Mapping[str, str], mesh: Mesh
) -> EvalStep:
    """Returns `eval_step(variables, batch) -> {task: log-probabilities float32 [B, C]}`.

    `heads` says for each task which head it has; one that tells ages by year adds `years`, see
    `log_probabilities`. If the transform gives several views of a picture, [B, V, S,
    S, 3], the probabilities are the means over them.
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
        answers: dict[str, jax.Array] = {}
        for task, head in heads.items():
            answers |= log_probabilities(task, head, logits[task])
        return answers if views == 1 else jax.tree.map(lambda a: _mean(a, views), answers)

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )


def _mean(log_probs: jax.Array, views: int) -> jax.Array:
    """Of the probabilities of each picture's views: logarithms [B * views, C] to [B, C]."""
    by_picture = log_probs.reshape(-1, views, log_probs.shape[-1])
    return jax.nn.logsumexp(by_picture, axis=1) - jnp.log(views)


def make_feature_step(
    model: Classifier,
    train_transform: Transform,
    eval_transform: Transform,
    *,
    seed: int,
    mesh: Mesh,
) -> FeatureStep:
    """Returns `feature_step(variables, batch, epoch) -> float32 [2, B, D]`, pooled features.

    They are, without and with the extra layers, what the heads see of the pictures in that epoch
    of a training with `seed`, or, where `epoch` is None, in an evaluation.
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
    """The keys of augmentation, of dropout and of mixup."""
    rng = jax.random.key(seed)
    augment_rng, dropout_rng = jax.random.split(rng)
    return augment_rng, dropout_rng, jax.random.fold_in(rng, 2)
