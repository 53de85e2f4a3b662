"""What runs on the devices: a training step, an evaluation step, a frozen backbone alone.

A batch is a dict: `image` uint8 [B, H, W, 3] RGB, `row` int32 [B] of the data set, one int32 [B]
of labels per task and `age_low` and `age_high` int32 [B], whole years (-1: unknown), and `mask`
bool [B] (False: padding). Where the pooled features of the pictures are known, `features` float32
[B, D] stand for `image`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from agenet.data.augment import Transform, example_keys
from agenet.freeze import merge, split
from agenet.labels import UNKNOWN
from agenet.losses import example_losses, log_probabilities
from agenet.models.classifier import Classifier
from agenet.sharding import batch_sharded, replicated
from agenet.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], dict[str, jax.Array]]
FeatureStep = Callable[[Any, Batch, int | None], jax.Array]


def make_train_step(
    model: Classifier,
    tx: optax.GradientTransformation,
    transform: Transform,
    *,
    heads: Mapping[str, str],
    seed: int,
    steps_per_epoch: int,
    mesh: Mesh,
) -> TrainStep:
    """Returns `train_step(state, batch) -> (state, sums)`, compiled; the given state is donated.

    The loss is the sum over tasks of the mean loss over examples that are known; `heads` says for
    each task which head it has, see `agenet.losses`. All randomness follows from the seed:
    augmentation from epoch and row, all else from `state.step`. The sums are scalars: `step`,
    `loss` and `gradient_norm` of this step, and per task, over known labels, `<task>_loss` (the
    negative log-likelihood of the class, whatever the head), `<task>_correct` and `<task>_count`.
    What is frozen passes through.
    """
    augment_rng, dropout_rng = _random_streams(seed)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        if "features" in batch:
            inputs, method = batch["features"], "classify"
        else:
            rngs = example_keys(augment_rng, state.step // steps_per_epoch, batch["row"])
            inputs, method = transform(batch["image"], rngs), "__call__"
        trained, frozen = split(state.params, model.frozen)

        def loss_fn(trained: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
            logits, updates = model.apply(
                {"params": merge(trained, frozen), "batch_stats": state.batch_stats},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(dropout_rng, state.step)},
                method=method,
            )
            loss, sums = jnp.zeros(()), dict[str, jax.Array]()
            for task, head in heads.items():
                losses, known = example_losses(task, head, logits[task], batch)
                loss += losses.sum() / jnp.maximum(known.sum(), 1)
                log_probs = log_probabilities(task, head, logits[task])[task]
                labelled = batch["mask"] & (batch[task] != UNKNOWN)
                of_label = (jax.nn.one_hot(batch[task], log_probs.shape[-1]) * log_probs).sum(-1)
                correct = (log_probs.argmax(-1) == batch[task]) & labelled
                sums |= {
                    f"{task}_loss": -jnp.where(labelled, of_label, 0.0).sum(),
                    f"{task}_correct": correct.sum(dtype=jnp.float32),
                    f"{task}_count": labelled.sum(dtype=jnp.float32),
                }
            return loss, ({"loss": loss} | sums, updates.get("batch_stats", {}))

        grads, (sums, batch_stats) = jax.grad(loss_fn, has_aux=True)(trained)
        sums |= {"step": state.step, "gradient_norm": optax.tree.norm(grads)}
        updates, opt_state = tx.update(grads, state.opt_state, trained)
        state = TrainState(
            step=state.step + 1,
            params=merge(optax.apply_updates(trained, updates), frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, sums

    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def make_eval_step(
    model: Classifier, transform: Transform, *, heads: Mapping[str, str], mesh: Mesh
) -> EvalStep:
    """Returns `eval_step(variables, batch) -> {task: log-probabilities float32 [B, C]}`.

    `heads` says for each task which head it has; one that tells ages by year adds `years`, see
    `agenet.losses.log_probabilities`.
    """

    def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        if "features" in batch:
            inputs, method = batch["features"], "classify"
        else:
            inputs, method = transform(batch["image"]), "__call__"
        logits: Any = model.apply(variables, inputs, train=False, method=method)
        answers: dict[str, jax.Array] = {}
        for task, head in heads.items():
            answers |= log_probabilities(task, head, logits[task])
        return answers

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )


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
    augment_rng, _ = _random_streams(seed)

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


def _random_streams(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of augmentation and of dropout."""
    augment_rng, dropout_rng = jax.random.split(jax.random.key(seed))
    return augment_rng, dropout_rng
