"""Computes what a comparison of frameworks shows: differences, spread over seeds, speeds."""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenet.evaluation.published import REFERENCE

Part = Mapping[str, Any]
Content = Mapping[str, Any]
# By framework and seed.
Trainings = dict[str, dict[int, Part]]

NAMES = {"jax": "JAX", "torch": "PyTorch", "keras": "Keras"}
REGIMES = {
    "plain": "without dropout and augmentation",
    "regular": "with the dropout and augmentation of each framework",
}
TASKS = ("age", "gender")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
# Differences up to this many times those that rounding alone caused are attributed to rounding.
ROUNDING = 10.0
# Relative difference. Where rounding may explain as much, a comparison cannot show anything: even a
# network that was not trained would pass.
CONCLUSIVE = 0.5
# Relative error of a few rounded operations, for any images.
LEAST = {"float32": 2e-6, "bfloat16": 2e-2}
UNIT = 2.0**-24  # rounding of parameters, which are float32 in every precision
MOST_ARRANGEMENTS = 50_000
# Faces of IMDb-Wiki that the reference report trained on.
_PRETRAINING_FACES = 60_000
_EPOCHS = 5
# The report's networks in the order of its tables, and their input sizes in pixels.
_SIZES = {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224}
PROJECTION = (
    "Levi-Hassner: five epochs of training. ResNet-50: five epochs with the backbone frozen, of "
    "which only the forward pass is counted. EfficientNet-B0: five epochs of training on 60,000 "
    "faces of IMDb-Wiki, then five of new heads on a frozen backbone."
)


@dataclass(frozen=True)
class Deviation:
    """A relative difference between two frameworks, and the one that rounding alone causes."""

    model: str
    optimizer: str
    dtype: str
    a: str
    b: str
    what: str
    difference: float
    rounding: float

    @property
    def ratio(self) -> float:
        return self.difference / max(self.rounding, 1e-12)

    @property
    def subject(self) -> str:
        with_optimizer = self.what not in ("logits", "gradients")
        return self.what + f" of {OPTIMIZERS[self.optimizer]}" * with_optimizer

    @property
    def is_conclusive(self) -> bool:
        """Whether rounding is exceeded, or would be by a network that was not trained at all."""
        return self.ratio > ROUNDING or ROUNDING * self.rounding <= CONCLUSIVE


@dataclass(frozen=True)
class Spread:
    """How one metric varies over frameworks and seeds.

    Attributes:
        values: by framework, the metric of each seed, in the same order of seeds.
        between: largest difference between the frameworks' means.
        seed_deviation: standard deviation over the seeds of one framework.
        framework_deviation: standard deviation over the frameworks of one seed.
        p: of a permutation test, see `permutation_p`.
        least_p: smallest p that is possible with so many frameworks and seeds.
        pairs: (a, b, mean difference, low, high) of b over a, with 95 % intervals of Student's t
            over seeds.
    """

    values: dict[str, list[float]]
    between: float
    seed_deviation: float
    framework_deviation: float
    p: float
    least_p: float
    pairs: list[tuple[str, str, float, float, float]]


def difference_rows(content: Content) -> Iterator[tuple[Part, Mapping[str, Any]]]:
    for key, part in content["parts"].items():
        if key.startswith("differences/"):
            yield from ((part, row) for row in part.get("rows", []))


def steps_text(step: str) -> str:
    return f"{step} step{'s' * (step != '1')}"


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The relative differences that are compared with rounding.

    They are norms, since a single unit may lie at the kink of a ReLU. Those of parameters are
    relative to the distance that training has moved them: relative to the parameters' own norm, a
    network that was not trained would be close.
    """
    steps = {steps_text(step): found["way"] for step, found in row["steps"].items()}
    return {"logits": row["logits"], "gradients": row["gradients"]["norm"]} | steps


def _least(row: Mapping[str, Any]) -> dict[str, float]:
    """The smallest differences that rounding explains, by the names of `figures_of`."""
    least = LEAST[row["dtype"]]
    steps = {
        steps_text(step): max(least, UNIT * found["way"] / max(found["norm"], 1e-30))
        for step, found in row["steps"].items()
    }
    return {"logits": least, "gradients": least} | steps


def deviations(content: Content) -> list[Deviation]:
    """Every difference between two frameworks, with the one that rounding explains.

    The latter is the largest of three: how far each framework is from itself when the last bits of
    its images change, and `_least`.
    """
    rounding: dict[tuple[str, ...], float] = {}
    rows = list(difference_rows(content))
    for part, row in rows:
        if row["kind"] != "rounding":
            continue
        for what, value in figures_of(row).items():
            key = (part["model"], part["optimizer"], row["dtype"], row["a"], what)
            rounding[key] = max(value, rounding.get(key, 0.0))
    result = []
    for part, row in rows:
        if row["kind"] != "pair":
            continue
        least = _least(row)
        for what, value in figures_of(row).items():
            where = (part["model"], part["optimizer"], row["dtype"])
            known = [rounding.get((*where, row[side], what), 0.0) for side in ("a", "b")]
            floor = max(*known, least[what])
            result.append(Deviation(*where, row["a"], row["b"], what, value, floor))
    return result


def speed(images_per_second: float) -> str:
    """Rounded to three significant digits, or to a whole number from 100 on."""
    value = images_per_second
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def trainings(content: Content) -> dict[tuple[str, int, str], Trainings]:
    """Finished trainings by network, size and regime."""
    groups: dict[tuple[str, int, str], Trainings] = {}
    for key, part in content["parts"].items():
        if key.startswith("results/") and "error" not in part:
            group = groups.setdefault((part["model"], part["size"], part["regime"]), {})
            group.setdefault(part["framework"], {})[part["seed"]] = part
    return groups


def spread(group: Trainings, figure: str) -> Spread | None:
    """Of a metric in the last epoch; None without two frameworks and two seeds in common."""
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in group.values())))
    if len(group) < 2 or len(seeds) < 2:
        return None
    values = {
        name: [float(of_seed[seed]["epochs"][-1][figure]) for seed in seeds]
        for name, of_seed in group.items()
    }
    table = np.array(list(values.values()))
    means = table.mean(1)
    p, least = permutation_p(table)
    pairs = [
        (a, b, *_t_interval(np.array(values[b]) - np.array(values[a])))
        for a, b in itertools.combinations(values, 2)
    ]
    return Spread(
        values=values,
        between=float(np.ptp(means)),
        seed_deviation=float(np.sqrt(table.var(1, ddof=1).mean())),
        framework_deviation=float(np.sqrt(table.var(0, ddof=1).mean())),
        p=p,
        least_p=least,
        pairs=pairs,
    )


def permutation_p(table: np.ndarray) -> tuple[float, float]:
    """The p-value of "the framework makes no difference", and the smallest possible one.

    Args:
        table: values of a metric [frameworks, seeds].

    If the framework made no difference, the values of one seed could come in any order. All orders
    within all seeds are tried, or 50,000 random ones; the statistic is the variance of the
    frameworks' means. (E. Edgington, P. Onghena, Randomization Tests, 2007, randomised blocks.)
    """
    from scipy.stats import permutation_test

    def statistic(*of_framework: np.ndarray, axis: int) -> np.ndarray:
        return np.var([values.mean(axis) for values in of_framework], axis=0)

    frameworks, seeds = table.shape
    # Without each seed's mean, which no order changes: it would cost digits that decide ties.
    found = permutation_test(
        table - table.mean(0),
        statistic,
        permutation_type="samples",
        alternative="greater",
        n_resamples=MOST_ARRANGEMENTS,
        random_state=0,  # `rng` from SciPy 1.15 on
    )
    return float(found.pvalue), math.factorial(frameworks) ** (1.0 - seeds)


def _t_interval(differences: np.ndarray) -> tuple[float, float, float]:
    from scipy.stats import sem, t

    mean = float(differences.mean())
    half = float(t.ppf(0.975, len(differences) - 1) * sem(differences))
    return mean, mean - half, mean + half


def largest_class(content: Content) -> Mapping[str, float]:
    """Each task's accuracy of always predicting the largest class of the test faces, if known."""
    shares: Mapping[str, float] = content.get("data", {}).get("largest_class", {})
    return shares


@dataclass(frozen=True)
class Speed:
    """The fastest variant of a framework at a stage, and the rate of its default variant."""

    framework: str
    variant: str
    rate: float
    default: float


def costs(content: Content) -> Iterator[Part]:
    for key, part in content["parts"].items():
        if key.startswith("cost/") and "error" not in part:
            yield part


def measurements(content: Content) -> list[Part]:
    """All parts, and the variants of the cost."""
    of_cost = (part["variants"].values() for part in costs(content))
    return [*content["parts"].values(), *itertools.chain(*of_cost)]


def rate(figures: Mapping[str, Any], stage: str) -> float | None:
    """Images per second, the median over turns."""
    turns = figures.get(stage)
    return statistics.median(turns) if turns and "error" not in figures else None


def fastest(part: Part, stage: str) -> list[Speed]:
    """The fastest variant of each framework, the fastest framework first."""
    best: dict[str, tuple[float, str]] = {}
    defaults: dict[str, float] = {}
    for figures in part["variants"].values():
        speed = rate(figures, stage)
        if speed is None:
            continue
        name = figures["framework"]
        best[name] = max(best.get(name, (0.0, "")), (speed, figures["variant"]))
        if figures["variant"] == "default":
            defaults[name] = speed
    speeds = [Speed(n, label, s, defaults.get(n, s)) for n, (s, label) in best.items()]
    return sorted(speeds, key=lambda speed: -speed.rate)


def five_epochs(part: Part, faces: int, training: float, inference: float) -> float | None:
    """Seconds that the report's experiment would take at these rates, see `PROJECTION`.

    None for networks and sizes that the report does not have, and if there are no faces.
    """
    model, size = part["model"], part["size"]
    if size != _SIZES.get(model) or not faces:
        return None
    if model == "levi_hassner":
        return _EPOCHS * faces / training
    if model == "resnet50":
        return _EPOCHS * faces / inference
    return _EPOCHS * (_PRETRAINING_FACES / training + faces / inference)


def published(model: str) -> tuple[tuple[str, str, float], ...] | None:
    """The report's accuracy in per cent, loss and seconds of age and gender, if it has them."""
    models = list(_SIZES)
    return REFERENCE[models.index(model)][1:] if model in models else None


def train_faces(content: Content) -> int:
    """Size of the whole training set; 0 if only the cost was measured, which reads no faces."""
    return int(content.get("data", {}).get("all_train_faces", 0))


def machine_of(part: Part, content: Content) -> Mapping[str, Any]:
    machine: Mapping[str, Any] = part.get("machine", content["machine"])
    return machine


def is_busy(part: Part, content: Content) -> bool:
    """Whether other programs loaded the machine as much as this one."""
    load = max(each.get("load", 0) for each in (part, *part["variants"].values()))
    return bool(load > 2 * machine_of(part, content)["cores"])
