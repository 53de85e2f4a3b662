"""Performs the task of a comparison in JAX."""

from typing import Any

import numpy as np

from agenet.frameworks.comparison.engine import (
    OUTPUTS,
    RATES,
    Framework,
    Tensors,
    flavour_of,
    split_tasks,
)
from agenet.frameworks.timing import Figures


class Jax(Framework):
    """agenet's own network, loss and augmentation, with an Optax optimizer."""

    result: Any = None

    def setup(self) -> None:
        import jax
        import jax.numpy as jnp
        import optax
        from flax.traverse_util import flatten_dict, unflatten_dict

        from agenet.data.augment import Augmentation, example_keys, make_train_transform
        from agenet.models import create_model
        from agenet.training.objective import Objective

        jax.config.update("jax_enable_compilation_cache", False)
        if self.work.exact:
            jax.config.update("jax_default_matmul_precision", "float32")
        self.jax, self.flatten, self.unflatten = jax, flatten_dict, unflatten_dict
        self.pipelined = jax.devices()[0].platform != "cpu"
        work = self.work
        rates: Any = {"dropout_rate": (0.5 if work.model == "levi_hassner" else 0.2) * work.regular}
        if "efficientnet" in work.model:
            rates["drop_path_rate"] = 0.2 * work.regular
        model = create_model(
            work.model,
            {"classes": OUTPUTS},
            flavour=flavour_of(work.model),
            dtype=work.dtype,
            **rates,
        )
        rate = RATES[work.optimizer]
        tx = optax.adam(rate) if work.optimizer == "adam" else optax.sgd(rate, momentum=0.9)
        self.tx = tx
        objective = Objective({"age": "groups", "gender": "softmax"})

        def loss_fn(params: Any, stats: Any, batch: Any, rng: Any) -> tuple[Any, Any]:
            images, labels = batch
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": rng},
            )
            truth = {"age": labels[:, 0], "gender": labels[:, 1]}
            truth["mask"] = jnp.ones(len(labels), bool)
            parts = split_tasks(logits["classes"])
            loss, _ = objective(parts, [(1.0, truth)], objective.total_weights(truth))
            return loss, updates.get("batch_stats", {})

        def step(state: Any, batch: Any) -> Any:
            params, stats, opt_state, rng, count = state
            keys = jax.random.fold_in(rng, count)
            (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, stats, batch, keys
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, stats, opt_state, rng, count + 1), loss

        self._step = jax.jit(step, donate_argnums=0)
        self._gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

        def apply(params: Any, stats: Any, images: Any) -> Any:
            logits: Any = model.apply({"params": params, "batch_stats": stats}, images)
            return logits["classes"]

        self._apply = jax.jit(apply)
        transform = make_train_transform(work.size, (0.0,) * 3, (1.0,) * 3, Augmentation())
        self._augment = jax.jit(
            lambda rng, images, rows, epoch: transform(images, example_keys(rng, epoch, rows))
        )
        self.rng = jax.random.key(0)
        # Values for timing, where nothing is assigned; any values take the same time.
        shapes: Any = jax.eval_shape(
            model.init, jax.random.key(0), np.zeros((1, work.size, work.size, 3))
        )
        self._begin(jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-3, np.float32), shapes))

    def _begin(self, variables: Any) -> None:
        params, stats = variables["params"], variables.get("batch_stats", {})
        state = (params, stats, self.tx.init(params), self.rng, 0)
        self.state = self.jax.tree.map(self.jax.numpy.array, state)

    def platform(self) -> str:
        return str(self.jax.devices()[0].platform)

    def describe(self) -> Figures:
        import flax

        device = self.jax.devices()[0]
        return {
            "versions": {"jax": self.jax.__version__, "flax": flax.__version__},
            "device": device.device_kind,
        }

    def seed(self, seed: int) -> None:
        self.rng = self.jax.random.key(seed)

    def assign(self, tensors: Tensors) -> None:
        self._begin(self.unflatten(tensors, sep="/"))

    def variables(self) -> Tensors:
        tree = {"params": self.state[0], "batch_stats": self.state[1]}
        return {name: np.asarray(leaf) for name, leaf in self.flatten(tree, sep="/").items()}

    def logits(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self._apply(self.state[0], self.state[1], images))

    def gradients(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, Tensors]:
        (loss, _), grads = self._gradients(
            self.state[0], self.state[1], (images, np.asarray(labels)), self.rng
        )
        flat = self.flatten({"params": grads}, sep="/")
        return float(loss), {name: np.asarray(leaf) for name, leaf in flat.items()}

    def place(self, images: np.ndarray, labels: np.ndarray) -> Any:
        return self.jax.device_put((images, np.asarray(labels)))

    def step(self, batch: Any) -> Any:
        self.state, loss = self._step(self.state, batch)
        return loss

    def infer(self, batch: Any) -> Any:
        return self._apply(self.state[0], self.state[1], batch[0])

    def augment(self, images: np.ndarray, rows: np.ndarray, epoch: int) -> np.ndarray:
        return np.asarray(self._augment(self.rng, images, rows, epoch))

    def synchronise(self) -> None:
        self.jax.block_until_ready(self.result)

    def peak(self) -> int:
        stats = self.jax.devices()[0].memory_stats() or {}
        return int(stats.get("peak_bytes_in_use") or super().peak())
