"""What a comparison of frameworks has found, worked out from its results file and nothing else."""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenet.evaluation.published import REFERENCE
from agenet.evaluation.summary import duration, percent
from agenet.frameworks.comparison.engine import KERAS_ADAM, NETWORKS

Part = Mapping[str, Any]
Content = Mapping[str, Any]
# By framework and seed.
Trainings = dict[str, dict[int, Part]]

NAMES = {"jax": "JAX", "torch": "PyTorch", "keras": "Keras"}
REGIMES = {"plain": "nothing random", "regular": "dropout and augmentation of each framework"}
TASKS = ("age", "gender")
# Differences up to this many times what rounding has been seen to do count for rounding.
ROUNDING = 10.0
# Of the length of a thing: where so much counts for rounding, another thing could pass for it.
TOLD = 0.5
# What the rounding of a few operations does to a number, whatever the pictures.
LEAST = {"float32": 2e-6, "bfloat16": 2e-2}
UNIT = 2.0**-24  # by which parameters are rounded, which are float32 in every precision
LEVEL = 0.05
LITTLE = 0.1  # of accuracy, above what always naming the largest class has
MOST_ARRANGEMENTS = 50_000
# Faces that the report drew from IMDb-Wiki.
_PRETRAINING_FACES = 60_000
_EPOCHS = 5
# The networks of the report, in the order of its tables.
_SIZES = {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224}
PROJECTION = (
    "Levi-Hassner: five epochs of training. ResNet-50: five epochs with the backbone frozen, of "
    "which the forward pass is what counts. EfficientNet-B0: five epochs of training on 60,000 "
    "faces of IMDb-Wiki, then five of new heads on a frozen backbone."
)


@dataclass(frozen=True)
class Finding:
    """In plain words, and what says so."""

    text: str
    evidence: str


@dataclass(frozen=True)
class Excess:
    """A difference between two frameworks, and what rounding alone has been seen to do."""

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
        return self.what + f" of {_optimizer(self.optimizer)}" * with_optimizer

    @property
    def told(self) -> bool:
        """Whether more than rounding is seen, or would be, as of a network not trained at all."""
        return self.ratio > ROUNDING or ROUNDING * self.rounding <= TOLD


@dataclass(frozen=True)
class Spread:
    """One figure of trainings that differ in framework and seed.

    Attributes:
        values: framework to the figure with each seed, in one order.
        between: largest difference between the frameworks' means.
        seed_deviation: standard deviation over seeds, of one framework.
        framework_deviation: standard deviation over frameworks, from one seed's start and order.
        p: of a permutation test, see `permutation_p`; the smallest possible one is `least_p`.
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


def findings(content: Content) -> list[Finding]:
    """Three: whether it is the same network, the same result, and what it costs."""
    return [_agreement(content), _results(content), _cost(content)]


def difference_rows(content: Content) -> Iterator[tuple[Part, Mapping[str, Any]]]:
    for key, part in content["parts"].items():
        if key.startswith("differences/"):
            yield from ((part, row) for row in part.get("rows", []))


def steps_text(step: str) -> str:
    return f"{step} step{'s' * (step != '1')}"


def figures_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What is compared with rounding; lengths, since a single unit may sit on a ReLU's kink.

    Of parameters beside the way that they have gone: beside their own length a network that was
    not trained at all would be near.
    """
    steps = {steps_text(step): found["way"] for step, found in row["steps"].items()}
    return {"logits": row["logits"], "gradients": row["gradients"]["norm"]} | steps


def _least(row: Mapping[str, Any]) -> dict[str, float]:
    """The same of the least rounding that there is, which for parameters is also their own."""
    least = LEAST[row["dtype"]]
    steps = {
        steps_text(step): max(least, UNIT * found["way"] / max(found["norm"], 1e-30))
        for step, found in row["steps"].items()
    }
    return {"logits": least, "gradients": least} | steps


def excesses(content: Content) -> list[Excess]:
    """Every difference between two frameworks beside what rounding explains.

    That is the larger of what each of the two does when the last bits of its pictures change, and
    of `_least`.
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
            result.append(Excess(*where, row["a"], row["b"], what, value, floor))
    return result


def speed(pictures_per_second: float) -> str:
    """With three digits that mean something."""
    value = pictures_per_second
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _agreement(content: Content) -> Finding:
    found = [e for e in excesses(content) if e.dtype == "float32"]
    if not found:
        return Finding(
            "Whether the frameworks compute the same is not known: fewer than two have run.",
            "No part of the agreement is in the results.",
        )
    count = len({n for e in found for n in (e.a, e.b)})
    told = sorted((e for e in found if e.told), key=lambda e: e.ratio)
    beyond = [e for e in told if e.ratio > ROUNDING]
    differing = {(e.subject, e.model) for e in beyond}
    hidden = {(e.subject, e.model) for e in found if not e.told} - differing
    same = {(e.subject, e.model) for e in found} - hidden - differing
    worst_of = {e.subject: e for e in told}  # the last one has most
    measured = "; ".join(
        f"{e.subject} {e.difference:.0e}, rounding alone {e.rounding:.0e} ({_pair(e)})"
        for e in (worst_of.get(subject) for subject in dict.fromkeys(e.subject for e in found))
        if e
    )
    evidence = (
        "Where two frameworks in float32 most exceed rounding, relative to the whole, or for steps "
        f"to the way that training has gone: {measured}. Rounding alone: the same framework with "
        f"its pictures changed in their last bit, but at least {LEAST['float32']:.0e}. "
        f"Of {len(told)} comparisons that can be told {len(beyond)} are beyond {ROUNDING:.0f} "
        "times that."
    )
    if hidden:
        evidence += (
            " Cannot be told apart from rounding at this many steps, where that would hide a "
            f"network that had learnt something else: {_listed(found, hidden)}."
        )
    if not same and not beyond:
        return Finding("Nothing that the frameworks do can be told from rounding.", evidence)
    start = f"To rounding, the {count} frameworks compute the same {_listed(found, same)}."
    start *= bool(same)
    if not beyond:
        return Finding(start, evidence)
    worst = beyond[-1]
    keras_adam = all(e.optimizer == "adam" and "keras" in (e.a, e.b) for e in beyond)
    cause = f" A difference by design: {KERAS_ADAM}." * keras_adam
    text = (
        f"{start} Not the same: {_listed(found, differing)}; {NAMES[worst.a]} and "
        f"{NAMES[worst.b]} differ by up to {worst.ratio:,.0f} times what rounding explains."
    )
    return Finding(text.strip(), evidence + cause)


def _pair(excess: Excess) -> str:
    return f"{NETWORKS[excess.model]}, {NAMES[excess.a]} and {NAMES[excess.b]}"


def _listed(found: list[Excess], chosen: set[tuple[str, str]]) -> str:
    """Subjects, each with its networks, in the order in which they were found."""
    networks: dict[str, list[str]] = {}
    for subject, model in dict.fromkeys((e.subject, e.model) for e in found):
        if (subject, model) in chosen:
            networks.setdefault(subject, []).append(NETWORKS[model])
    return ", ".join(f"{subject} ({', '.join(of)})" for subject, of in networks.items())


def _optimizer(name: str) -> str:
    return {"adam": "Adam", "sgd": "SGD"}[name]


def trainings(content: Content) -> dict[tuple[str, int, str], Trainings]:
    """Finished trainings by network, size and regime."""
    groups: dict[tuple[str, int, str], Trainings] = {}
    for key, part in content["parts"].items():
        if key.startswith("results/") and "error" not in part:
            group = groups.setdefault((part["model"], part["size"], part["regime"]), {})
            group.setdefault(part["framework"], {})[part["seed"]] = part
    return groups


def spread(group: Trainings, figure: str) -> Spread | None:
    """Of the last epoch's figure; None without two frameworks and two seeds that both have."""
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
    """How often chance would set the frameworks' means as far apart, and the least there can be.

    If the framework made no difference, the values [frameworks, seeds] of one seed could as well
    have come in another order. All orders within all seeds are tried, or 50,000 drawn ones; the
    statistic is the variance of the frameworks' means. (E. Edgington, P. Onghena, Randomization
    Tests, 2007, randomised blocks.)
    """
    frameworks, seeds = table.shape
    orders = np.array(list(itertools.permutations(range(frameworks))))
    total = len(orders) ** seeds
    if total <= MOST_ARRANGEMENTS:
        chosen = np.array(list(itertools.product(range(len(orders)), repeat=seeds)))
    else:
        chosen = np.random.default_rng(0).integers(len(orders), size=(MOST_ARRANGEMENTS, seeds))
        chosen[0] = 0  # What was seen is one of them.
    arranged = table[orders[chosen], np.arange(seeds)[None, :, None]]  # [arrangements, seeds, F]
    statistic = arranged.mean(1).var(1)
    seen = table.mean(1).var()
    p = float((statistic >= seen - 1e-12).mean())
    return p, math.factorial(frameworks) / total


def _t_interval(differences: np.ndarray) -> tuple[float, float, float]:
    from scipy.stats import t

    count, mean = len(differences), float(differences.mean())
    half = float(t.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def _results(content: Content) -> Finding:
    tested = [
        (model, regime, task, found)
        for (model, _, regime), group in trainings(content).items()
        for task in TASKS
        if (found := spread(group, f"{task}_accuracy"))
    ]
    if not tested:
        return Finding(
            "Whether the framework changes the accuracy is not known: it takes two frameworks "
            "with two seeds each.",
            "Too few trainings are in the results.",
        )
    model, regime, task, found = min(tested, key=lambda row: row[3].p)
    p = min(1.0, found.p * len(tested))
    widest = max(tested, key=lambda row: row[3].between)
    seeds = len(next(iter(found.values.values())))
    evidence = (
        f"{len(tested)} comparisons over {seeds} seeds. Largest distance between frameworks' mean "
        f"accuracies: {percent(widest[3].between)} points ({widest[2]}, {NETWORKS[widest[0]]}, "
        f"{REGIMES[widest[1]]}); there one framework varies by {percent(widest[3].seed_deviation)} "
        "points (standard deviation) from seed to seed, and from one seed frameworks vary by "
        f"{percent(widest[3].framework_deviation)}. Smallest p of a permutation test within "
        f"seeds, times the number of comparisons: {p:.2g}."
    )
    caution, beside = _beside_chance(content, [row[2:] for row in tested])
    evidence += beside
    if p < LEVEL:
        means = {name: statistics.fmean(values) for name, values in found.values.items()}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        return Finding(
            f"The framework changes the accuracy consistently: {NAMES[best]} is "
            f"{percent(found.between)} points of {task} above {NAMES[worst]}, beyond what chance "
            f"would do (p = {p:.2g}; {NETWORKS[model]}, {REGIMES[regime]}). That is "
            f"{'more' if found.between > found.seed_deviation else 'no more'} than the "
            f"{percent(found.seed_deviation)} by which one framework varies from seed to seed."
            f"{caution}",
            evidence,
        )
    if all(row[3].least_p * len(tested) >= LEVEL for row in tested):
        return Finding(
            "The frameworks' accuracies differ no more than seeds do, as far as so few seeds can "
            f"tell: by {percent(widest[3].between)} points at most, where one framework varies by "
            f"{percent(widest[3].seed_deviation)} from seed to seed.{caution}",
            evidence + " With so few seeds no difference could have passed this test.",
        )
    return Finding(
        f"No framework is seen to be more accurate than another: means differ by "
        f"{percent(widest[3].between)} points at most, where one framework varies by "
        f"{percent(widest[3].seed_deviation)} from seed to seed.{caution}",
        evidence,
    )


def largest_class(content: Content) -> Mapping[str, float]:
    """Each task's accuracy of always naming the largest class of the test faces, if known."""
    shares: Mapping[str, float] = content.get("data", {}).get("largest_class", {})
    return shares


def _beside_chance(content: Content, tested: list[tuple[str, Spread]]) -> tuple[str, str]:
    """Whether the networks have learnt enough to differ, and how much more than nothing."""
    near, evidence = [], []
    for task, share in largest_class(content).items():
        means = [
            statistics.fmean(values)
            for of, found in tested
            if of == task
            for values in found.values.values()
        ]
        if not means:
            continue
        evidence.append(
            f"{task} {percent(share)}, here {percent(min(means))}–{percent(max(means))}"
        )
        if max(means) < share + LITTLE:
            near.append(task)
    if not evidence:
        return "", ""
    caution = (
        f" Of {' and '.join(near)} the networks have learnt little, so that this says little of "
        "longer trainings."
    )
    return caution * bool(near), (
        " Always the largest class of these test faces, in per cent beside the frameworks' means: "
        f"{'; '.join(evidence)}."
    )


@dataclass(frozen=True)
class Speed:
    """The variant of a framework that is fastest at a stage, and its default."""

    framework: str
    variant: str
    rate: float
    default: float


def costs(content: Content) -> Iterator[Part]:
    for key, part in content["parts"].items():
        if key.startswith("cost/") and "error" not in part:
            yield part


def rate(figures: Mapping[str, Any], stage: str) -> float | None:
    """Pictures per second, the median over turns."""
    turns = figures.get(stage)
    return statistics.median(turns) if turns and "error" not in figures else None


def fastest(part: Part, stage: str) -> list[Speed]:
    """Of each framework, the fastest first."""
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
    """Seconds that the report's experiment would take at these speeds, see `PROJECTION`.

    None for what the report has not trained, or not at this size, or without faces.
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
    """Accuracy in per cent, loss and seconds of age and gender in the report, if it has them."""
    models = list(_SIZES)
    return REFERENCE[models.index(model)][1:] if model in models else None


def train_faces(content: Content) -> int:
    """Of the whole training set; 0 where only the cost was measured, for which none is read."""
    return int(content.get("data", {}).get("all_train_faces", 0))


def machine_of(part: Part, content: Content) -> Mapping[str, Any]:
    machine: Mapping[str, Any] = part.get("machine", content["machine"])
    return machine


def is_busy(part: Part, content: Content) -> bool:
    """Whether other programs wanted as much of the machine as this one."""
    load = max(each.get("load", 0) for each in (part, *part["variants"].values()))
    return bool(load > 2 * machine_of(part, content)["cores"])


def _cost(content: Content) -> Finding:
    sentences, evidence = [], []
    for part in costs(content):
        speeds = fastest(part, "training")
        if len(speeds) < 2:
            continue
        name, (first, *_, last) = NETWORKS[part["model"]], speeds
        sentences.append((first.rate / last.rate, name, first, last))
        shown = ", ".join(
            f"{NAMES[s.framework]} {speed(s.rate)} ({s.variant}"
            + (")" if s.variant == "default" else f"; {speed(s.default)} by default)")
            for s in speeds
        )
        text = f"{name}, {part['size']} px, pictures per second in training: {shown}"
        inference = {s.framework: s.rate for s in fastest(part, "inference")}
        faces = train_faces(content)
        if first.framework in inference:
            seconds = five_epochs(part, faces, first.rate, inference[first.framework])
            report = published(part["model"])
            if seconds is not None and report is not None:
                text += (
                    f"; the report's five epochs would take {NAMES[first.framework]} here "
                    f"{duration(seconds)}, and took the report {duration(report[0][2])} for ages"
                )
        evidence.append(
            f"{text}; load {part['load']} on {machine_of(part, content)['cores']} cores."
        )
    if not sentences:
        return Finding(
            "What the frameworks cost is not known: fewer than two have been timed.",
            "No part of the cost is in the results.",
        )
    sentences.sort(key=lambda row: -row[0])
    winners = {first.framework for _, _, first, _ in sentences}
    if len(winners) == 1:
        start = f"{NAMES[next(iter(winners))]} trains fastest on this machine"
    else:
        start = "Which framework trains fastest on this machine depends on the network"
    parts = [
        f"{network}: {NAMES[a.framework]}, {r:.1f} times as fast as {NAMES[b.framework]}"
        for r, network, a, b in sentences
    ]
    busy = any(is_busy(part, content) for part in costs(content))
    warning = " The machine was busy with other work, so that these ratios are rough." * busy
    return Finding(f"{start} ({'; '.join(parts)}).{warning}", " ".join(evidence))
