"""The two functions that run on the devices: one training step, one evaluation step.

A batch is a dict: `image` uint8 [B, H, W, 3] RGB, one int32 [B] of labels per task (-1: unknown)
and `mask` bool [B] (False: padding).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from agenet.data.augment import Transform
from agenet.freeze import merge, split
from agenet.losses import log_probabilities, masked_loss
from agenet.models.classifier import Classifier
from agenet.sharding import batch_sharded, replicated
from agenet.state import TrainState

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Any, Batch], dict[str, jax.Array]]


def make_train_step(
    model: Classifier,
    tx: optax.GradientTransformation,
    transform: Transform,
    *,
    activations: Mapping[str, str],
    seed: int,
    mesh: Mesh,
) -> TrainStep:
    """Returns `train_step(state, batch) -> (state, sums)`, compiled; the given state is donated.

    The loss is the sum over tasks of the mean loss over known labels; `activations` says for each
    task what its loss is, see `agenet.losses`. All randomness follows from the seed and
    `state.step`. The sums are scalars: `step`, `loss` and `gradient_norm` of this step, and per
    task `<task>_loss`, `<task>_correct` and `<task>_count`. What is frozen passes through.
    """
    rng = jax.random.key(seed)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_rng, dropout_rng = jax.random.split(jax.random.fold_in(rng, state.step))
        images = transform(batch["image"], augment_rng)

        trained, frozen = split(state.params, model.frozen)

        def loss_fn(trained: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
            logits, updates = model.apply(
                {"params": merge(trained, frozen), "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_rng},
            )
            loss, sums = jnp.zeros(()), dict[str, jax.Array]()
            for task, activation in activations.items():
                total, count = masked_loss(logits[task], batch[task], batch["mask"], activation)
                loss += total / jnp.maximum(count, 1.0)
                correct = (logits[task].argmax(-1) == batch[task]) & batch["mask"]
                sums |= {
                    f"{task}_loss": total,
                    f"{task}_correct": correct.sum(dtype=jnp.float32),
                    f"{task}_count": count,
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
    model: Classifier, transform: Transform, *, activations: Mapping[str, str], mesh: Mesh
) -> EvalStep:
    """Returns `eval_step(variables, batch) -> {task: log-probabilities float32 [B, C]}`."""

    def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        logits: Any = model.apply(variables, transform(batch["image"]), train=False)
        return {
            task: log_probabilities(logits[task], activation)
            for task, activation in activations.items()
        }

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )
