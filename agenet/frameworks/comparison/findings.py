"""States the conclusions of a comparison of frameworks, from its results file alone."""

import statistics
from dataclasses import dataclass

from agenet.evaluation.summary import duration, percent
from agenet.frameworks.comparison import analysis
from agenet.frameworks.comparison.analysis import NAMES, Content, Deviation, Spread
from agenet.frameworks.comparison.engine import KERAS_ADAM, NETWORKS

LEVEL = 0.05  # of significance
LITTLE = 0.1  # accuracy above that of always predicting the largest class


@dataclass(frozen=True)
class Finding:
    """A conclusion in one sentence or two, and the figures behind it."""

    text: str
    evidence: str


def findings(content: Content) -> list[Finding]:
    """Three findings: on the same computation, the same accuracy, and the cost."""
    return [_agreement(content), _results(content), _cost(content)]


def _agreement(content: Content) -> Finding:
    found = [e for e in analysis.deviations(content) if e.dtype == "float32"]
    if not found:
        return Finding(
            "Whether the frameworks compute the same is not known: fewer than two have run.",
            "The results contain no part of the agreement.",
        )
    count = len({n for e in found for n in (e.a, e.b)})
    conclusive = sorted((e for e in found if e.is_conclusive), key=lambda e: e.ratio)
    beyond = [e for e in conclusive if e.ratio > analysis.ROUNDING]
    differing = {(e.subject, e.model) for e in beyond}
    hidden = {(e.subject, e.model) for e in found if not e.is_conclusive} - differing
    same = {(e.subject, e.model) for e in found} - hidden - differing
    worst_of = {e.subject: e for e in conclusive}  # the last one of a subject is the largest
    measured = "; ".join(
        f"{e.subject} {e.difference:.0e}, rounding alone {e.rounding:.0e} ({_pair(e)})"
        for e in (worst_of.get(subject) for subject in dict.fromkeys(e.subject for e in found))
        if e
    )
    evidence = (
        "Largest differences between two frameworks in float32, as multiples of rounding, relative "
        f"to the whole or, for steps, to the distance trained: {measured}. Rounding alone: the "
        "same framework with its images changed in their last bit, but at least "
        f"{analysis.LEAST['float32']:.0e}. Of {len(conclusive)} conclusive comparisons "
        f"{len(beyond)} exceed {analysis.ROUNDING:.0f} times that."
    )
    if hidden:
        evidence += (
            " Not conclusive, because after this many steps rounding alone could hide a network "
            f"that has learnt something else: {_listed(found, hidden)}."
        )
    if not same and not beyond:
        return Finding("No comparison of the frameworks is conclusive beyond rounding.", evidence)
    start = (
        f"Up to floating-point error, the {count} frameworks compute the same "
        f"{_listed(found, same)}."
    )
    start *= bool(same)
    if not beyond:
        return Finding(start, evidence)
    worst = beyond[-1]
    keras_adam = all(e.optimizer == "adam" and "keras" in (e.a, e.b) for e in beyond)
    cause = f" This difference is by design: {KERAS_ADAM}." * keras_adam
    text = (
        f"{start} Not the same: {_listed(found, differing)}; {NAMES[worst.a]} and "
        f"{NAMES[worst.b]} differ by up to {worst.ratio:,.0f} times what rounding explains."
    )
    return Finding(text.strip(), evidence + cause)


def _pair(deviation: Deviation) -> str:
    return f"{NETWORKS[deviation.model]}, {NAMES[deviation.a]} and {NAMES[deviation.b]}"


def _listed(found: list[Deviation], chosen: set[tuple[str, str]]) -> str:
    """Subjects, each with its networks, in the order of `found`."""
    networks: dict[str, list[str]] = {}
    for subject, model in dict.fromkeys((e.subject, e.model) for e in found):
        if (subject, model) in chosen:
            networks.setdefault(subject, []).append(NETWORKS[model])
    return ", ".join(f"{subject} ({', '.join(of)})" for subject, of in networks.items())


def _results(content: Content) -> Finding:
    tested = [
        (model, regime, task, found)
        for (model, _, regime), group in analysis.trainings(content).items()
        for task in analysis.TASKS
        if (found := analysis.spread(group, f"{task}_accuracy"))
    ]
    if not tested:
        return Finding(
            "Whether the framework changes the accuracy is not known: it takes two frameworks "
            "with two seeds each.",
            "The results contain too few trainings.",
        )
    model, regime, task, found = min(tested, key=lambda row: row[3].p)
    p = min(1.0, found.p * len(tested))
    widest = max(tested, key=lambda row: row[3].between)
    seeds = len(next(iter(found.values.values())))
    evidence = (
        f"{len(tested)} comparisons over {seeds} seeds. Largest difference between frameworks' "
        f"mean accuracies: {percent(widest[3].between)} points ({widest[2]}, "
        f"{NETWORKS[widest[0]]}, {analysis.REGIMES[widest[1]]}). There the standard deviation "
        f"over the seeds of one framework is {percent(widest[3].seed_deviation)} points, over the "
        f"frameworks of one seed "
        f"{percent(widest[3].framework_deviation)}. Smallest p of a permutation test within "
        f"seeds, times the number of comparisons: {p:.2g}."
    )
    caution, more = _above_largest_class(content, [row[2:] for row in tested])
    evidence += more
    if p < LEVEL:
        means = {name: statistics.fmean(values) for name, values in found.values.items()}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        return Finding(
            f"The framework changes the accuracy consistently: {NAMES[best]} is "
            f"{percent(found.between)} points of {task} accuracy above {NAMES[worst]} "
            f"(p = {p:.2g}; {NETWORKS[model]}, {analysis.REGIMES[regime]}). That is "
            f"{'more' if found.between > found.seed_deviation else 'no more'} than the "
            f"{percent(found.seed_deviation)} points by which one framework varies over seeds."
            f"{caution}",
            evidence,
        )
    few = all(row[3].least_p * len(tested) >= LEVEL for row in tested)
    return Finding(
        "No difference in accuracy between frameworks was found"
        f"{', and so few seeds could not show one' * few}: means differ by at most "
        f"{percent(widest[3].between)} points, and one framework varies by "
        f"{percent(widest[3].seed_deviation)} over seeds.{caution}",
        evidence + " With so few seeds no difference can be significant." * few,
    )


def _above_largest_class(content: Content, tested: list[tuple[str, Spread]]) -> tuple[str, str]:
    """A caution if the networks have learnt too little to differ, and the figures behind it."""
    near, evidence = [], []
    for task, share in analysis.largest_class(content).items():
        means = [
            statistics.fmean(values)
            for of, found in tested
            if of == task
            for values in found.values.values()
        ]
        if not means:
            continue
        evidence.append(
            f"{task} {percent(share)}, means {percent(min(means))}–{percent(max(means))}"
        )
        if max(means) < share + LITTLE:
            near.append(task)
    if not evidence:
        return "", ""
    caution = (
        f" The networks have learnt little of {' and '.join(near)}, so longer trainings may differ."
    )
    return caution * bool(near), (
        " Accuracy in per cent of always predicting the largest class, and the frameworks' means: "
        f"{'; '.join(evidence)}."
    )


def _cost(content: Content) -> Finding:
    sentences, evidence = [], []
    for part in analysis.costs(content):
        speeds = analysis.fastest(part, "training")
        if len(speeds) < 2:
            continue
        name, (first, *_, last) = NETWORKS[part["model"]], speeds
        sentences.append((first.rate / last.rate, name, first, last))
        shown = ", ".join(
            f"{NAMES[s.framework]} {analysis.speed(s.rate)} ({s.variant}"
            + (")" if s.variant == "default" else f"; {analysis.speed(s.default)} by default)")
            for s in speeds
        )
        text = f"{name}, {part['size']} px, images per second in training: {shown}"
        inference = {s.framework: s.rate for s in analysis.fastest(part, "inference")}
        faces = analysis.train_faces(content)
        if first.framework in inference:
            seconds = analysis.five_epochs(part, faces, first.rate, inference[first.framework])
            report = analysis.published(part["model"])
            if seconds is not None and report is not None:
                text += (
                    f"; the report's five epochs would take {duration(seconds)} in "
                    f"{NAMES[first.framework]} here, and took {duration(report[0][2])} for age in "
                    "the report"
                )
        evidence.append(
            f"{text}; load {part['load']} on {analysis.machine_of(part, content)['cores']} cores."
        )
    if not sentences:
        return Finding(
            "What the frameworks cost is not known: fewer than two have been timed.",
            "The results contain no part of the cost.",
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
    busy = any(analysis.is_busy(part, content) for part in analysis.costs(content))
    warning = " The machine was busy, so these ratios are rough." * busy
    return Finding(f"{start} ({'; '.join(parts)}).{warning}", " ".join(evidence))
