"""Composes the HTML and Markdown pages of a comparison of frameworks."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agenet.evaluation.comparison.tables import reference
from agenet.evaluation.figure_style import to_image
from agenet.evaluation.page import (
    NONE,
    Cell,
    Details,
    Heading,
    Listing,
    Node,
    Row,
    Table,
    Text,
    images,
    to_html,
    to_markdown,
)
from agenet.evaluation.published import SOURCES
from agenet.evaluation.summary import duration, percent, signed
from agenet.files import write_file
from agenet.frameworks.comparison import analysis, figures
from agenet.frameworks.comparison.analysis import NAMES, Content, Part, Trainings
from agenet.frameworks.comparison.engine import LEFT, NETWORKS, flavour_of
from agenet.frameworks.comparison.findings import findings
from agenet.frameworks.comparison.results import read_results

PAGE, TEXT, IMAGES = "frameworks.html", "frameworks.md", "frameworks_images"
TITLE = "One network, three frameworks"
_KINDS = {
    "exact": "Each framework and PyTorch in float64",
    "pair": "Two frameworks",
    "rounding": "Rounding alone: the same framework, with its images changed in their last bit",
}


def write_pages(folder: Path) -> list[Path]:
    """Writes one self-contained HTML page, and the same in Markdown.

    Raises:
        UserError: results.json is damaged.
    """
    nodes = compose(read_results(folder))
    drawn = {image.name: image.content for image in images(nodes)}
    (folder / IMAGES).mkdir(exist_ok=True)
    for name, content in drawn.items():
        write_file(folder / IMAGES / name, content)
    write_file(folder / TEXT, to_markdown(nodes, IMAGES).encode())
    write_file(folder / PAGE, to_html(TITLE, nodes).encode())
    return [folder / PAGE, folder / TEXT]


def compose(content: Content) -> list[Node]:
    """The document as nodes, from the results alone."""
    nodes: list[Node] = [Heading(1, TITLE)]
    for number, finding in enumerate(findings(content), 1):
        nodes += [Heading(3, f"{number}. {finding.text}"), note(finding.evidence)]
    nodes += [
        Heading(2, "What was compared", "compared"),
        *_compared(content),
        *_agreement(content),
        *_results(content),
        *_cost(content),
        Heading(2, "The reference report", "report"),
        reference(),
        note(
            "As printed in the report: its own machine, five epochs, an undocumented split, "
            "PyTorch for the first two networks and Keras for the third."
        ),
        *_settings(content),
        Heading(3, "Sources"),
        Listing(SOURCES),
    ]
    return nodes


def note(text: str) -> Text:
    return Text(text, "note")


def _compared(content: Content) -> list[Node]:
    data = content.get("data", {})
    measured = analysis.measurements(content)
    rows: list[Row] = []
    for name, about in content.get("frameworks", {}).items():
        parts = [part for part in measured if part.get("framework") == name]
        versions = dict(item for part in parts for item in part.get("versions", {}).items())
        failed = sum("error" in part for part in parts)
        state = f"{about['missing']} is not installed" if about["missing"] else "ran"
        state = f"{failed} of {len(parts)} parts failed, see below" if failed else state
        devices = sorted({part["device"] for part in parts if "device" in part})
        shown = ", ".join(f"{n} {v}" for n, v in versions.items())
        rows.append([NAMES[name], shown or NONE, ", ".join(devices), state])
    machines = [analysis.machine_of(part, content) for part in measured]
    machine_lines = dict.fromkeys(
        f"Machine: {m['processor']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB, "
        f"{m['system']}, Python {m['python']}, agenet {m['agenet']}."
        for m in machines or [content["machine"]]
    )
    nodes: list[Node] = [
        Table(["Framework", "Versions", "Device", "State"], rows, frozenset(range(4))),
        *map(Text, machine_lines),
    ]
    if data:
        initial = "; ".join(f"{NETWORKS[m]}: {text}" for m, text in data["initial"].items())
        nodes += [
            Text(
                f"Data: {data['name']} (fingerprint {data['fingerprint']}), tested on fold "
                f"{data['test_fold']}, split {data['split']}: {data['train_faces']:,} of "
                f"{data['all_train_faces']:,} training faces and {data['test_faces']:,} of "
                f"{data['all_test_faces']:,} test faces of {data['test_persons']:,} subjects, "
                f"drawn with seed {data['split_seed']}. {data['notice']}".strip()
            ),
            Text(f"Initial weights, the same in all frameworks: {initial}."),
        ]
    networks = sorted({p["model"] for p in content["parts"].values() if "model" in p})
    computed = ", ".join(f"{NETWORKS[m]} as {flavour_of(m)}" for m in networks)
    nodes.append(
        note(
            "Networks of one name differ between libraries in padding, strides and constants of "
            f"batch normalisation; here all are the same ({computed}). Remaining differences: "
            f"{'; '.join(LEFT)}."
        )
    )
    return nodes


def _agreement(content: Content) -> list[Node]:
    parts = [
        p for k, p in content["parts"].items() if k.startswith("differences/") and p.get("rows")
    ]
    if not parts:
        return []
    nodes: list[Node] = [
        Heading(2, "Do they compute the same?", "agreement"),
        Text(
            "Compared are logits before training, loss and gradients of the first batch, and "
            "parameters after some steps, from the same weights, on the same images in the same "
            "order, without dropout, stochastic depth and augmentation. Training amplifies "
            "rounding, so every difference is compared with the one that changing the last bit of "
            f"the images causes. Where {analysis.ROUNDING:.0f} times that exceeds "
            f"{percent(analysis.CONCLUSIVE)} % of the whole, the comparison is not conclusive: "
            "even a framework that did not train at all would pass."
        ),
        to_image(
            figures.agreement(parts),
            "agreement",
            "Relative differences from float64 and by rounding alone, over steps of training",
            "Solid lines: a framework and PyTorch in float64. Dotted: the same framework with and "
            "without its images changed in their last bit. Where a solid line is near a dotted "
            "one, the difference may be rounding; where a dotted line is above the grey one, the "
            "comparison is not conclusive.",
        ),
    ]
    header = ["Compared", "Logits", "Loss", "Gradients", "largest leaf"]
    steps = list(parts[0]["rows"][0]["steps"])
    header += [f"Parameters, {analysis.steps_text(step)}" for step in steps]
    header += [f"Statistics, {analysis.steps_text(steps[0])}"]
    conclusive = {
        (d.model, d.optimizer, d.dtype, d.a, d.b, d.what): d.is_conclusive
        for d in analysis.deviations(content)
    }
    for part in parts:
        optimizer = {"sgd": "SGD with momentum", "adam": "Adam"}[part["optimizer"]]
        title = f"{NETWORKS[part['model']]}, {part['size']} px, {optimizer}"
        rows: list[Row] = []
        for kind, band in _KINDS.items():
            of_kind = [row for row in part["rows"] if row["kind"] == kind]
            rows += [band] * bool(of_kind)
            rows += [_difference_row(part, row, conclusive) for row in of_kind]
        nodes += [Heading(3, title), Table(header, rows)]
    nodes.append(
        note(
            "Logits and statistics: the largest difference divided by the largest value. "
            "Gradients: the norm of the difference divided by the norm of the whole, and the "
            "largest relative difference of one leaf, which may be due to a single unit at the "
            "kink of a ReLU. Parameters: the norm of the difference divided by the distance that "
            "training has moved them."
        )
    )
    return nodes


def _difference_row(part: Part, row: dict[str, Any], conclusive: dict[Any, bool]) -> list[Cell]:
    name = NAMES[row["a"]] + (f" and {NAMES[row['b']]}" if row["kind"] == "pair" else "")
    values = {"logits": row["logits"], "loss": row["loss"], **analysis.figures_of(row)}
    values["statistics"] = next(iter(row["steps"].values())).get("statistics")
    cells = []
    for what, value in values.items():
        place = (part["model"], part["optimizer"], row["dtype"], row["a"], row["b"], what)
        hidden = row["kind"] == "pair" and not conclusive.get(place, True)
        text = "0" if value == 0 else f"{value:.0e}" if value is not None else NONE.text
        cells.append(Cell(text, "not conclusive" * hidden))
        if what == "gradients":
            cells.append(Cell(f"{row['gradients']['largest']:.0e}"))
    return [Cell(name, "" if row["dtype"] == "float32" else row["dtype"]), *cells]


def _results(content: Content) -> list[Node]:
    groups = analysis.trainings(content)
    if not groups:
        return []
    settings = content["settings"]
    nodes: list[Node] = [
        Heading(2, "Do they reach the same results?", "results"),
        Text(
            f"{settings['epochs']} epochs with Adam at 1e-4 and batches of "
            f"{settings['results_batch']}, from the same weights and in the same order for "
            "the same seed: once with nothing else that is random, once with dropout, stochastic "
            "depth, random crops and flips as each framework has them (Keras's RandomCrop crops "
            "all images of a batch at the same place)."
        ),
    ]
    for (model, size, regime), group in groups.items():
        name = f"{NETWORKS[model]}, {size} px, {analysis.REGIMES[regime]}"
        anchor = f"results-{model}-{regime}".replace("_", "-")
        nodes += [
            Heading(3, name),
            to_image(
                figures.results(group),
                anchor,
                f"Test accuracy by framework and seed: {name}",
                "A dot is one training, a line joins those of one seed, a bar is the mean.",
            ),
            _results_table(group, model, analysis.largest_class(content)),
            *_test(group),
        ]
    pairs = sum(
        len(found.pairs)
        for group in groups.values()
        for task in analysis.TASKS
        if (found := analysis.spread(group, f"{task}_accuracy"))
    )
    nodes.append(
        note(
            "±: standard deviation over seeds (sample, n - 1). Below an accuracy: its 95 % "
            "interval by a bootstrap over subjects, for the first seed. p: of a permutation test "
            "over all orders of the frameworks within the seeds, with the variance of the "
            "frameworks' means as the statistic. It is not multiplied by the number of "
            "comparisons here, as it is at the top, and the intervals "
            f"of the {pairs} pairs are not adjusted for their number: one in twenty excludes zero "
            "by chance."
        )
    )
    return nodes


def _results_table(group: Trainings, model: str, shares: Mapping[str, float]) -> Table:
    header = ["Framework", "Seeds", "Age %", "Age loss", "Gender %", "Gender loss"]
    header += ["Training loss", "Time of a training"]
    rows: list[Row] = []
    for name, of_seed in group.items():
        first = of_seed[min(of_seed)]
        last = [part["epochs"][-1] for part in of_seed.values()]
        cells: list[Cell | str] = [NAMES[name], str(len(of_seed))]
        for task in analysis.TASKS:
            values = [100 * figures_[f"{task}_accuracy"] for figures_ in last]
            ends = first["intervals"][task]
            more = f"{percent(ends[0])}–{percent(ends[1])}" if ends else ""
            cells.append(Cell(_mean(values, 1), more, strong=True))
            cells.append(_mean([figures_[f"{task}_loss"] for figures_ in last], 3))
        cells.append(_mean([figures_["training_loss"] for figures_ in last], 3))
        cells.append(duration(statistics.median(p["took"] for p in of_seed.values())))
        rows.append(cells)
    if shares:
        rows.append("Baseline")
        age, gender = (percent(shares[task]) for task in analysis.TASKS)
        always = "Always the largest class of these test faces"
        rows.append([always, NONE, age, NONE, gender, NONE, NONE, NONE])
    if report := analysis.published(model):
        # Its split and its recipe differ, so it is a section of its own.
        rows.append("The reference report [3]")
        figures_ = [text for accuracy, loss, _ in report for text in (accuracy, loss)]
        took = duration(sum(seconds for _, _, seconds in report))
        rows.append(["As printed", "1", *figures_, NONE, took])
    return Table(header, rows)


def _mean(values: Sequence[float], digits: int) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _test(group: Trainings) -> list[Node]:
    rows: list[Row] = []
    pairs: list[Row] = []
    for task in analysis.TASKS:
        found = analysis.spread(group, f"{task}_accuracy")
        if found is None:
            continue
        spreads = (found.between, found.seed_deviation, found.framework_deviation)
        p_values = (f"{p:.2g}" for p in (found.p, found.least_p))
        rows.append([task.capitalize(), *map(percent, spreads), *p_values])
        for a, b, mean, low, high in found.pairs:
            ends = f"{signed(100 * low)} to {signed(100 * high)}"
            pairs.append([f"{NAMES[b]} over {NAMES[a]}", task, signed(100 * mean), ends])
    if not rows:
        return [note("With one framework or one seed there is nothing to test.")]
    header = ["Accuracy, points", "Between frameworks' means", "Deviation over seeds"]
    header += ["Deviation over frameworks, one seed", "p", "smallest possible p"]
    pairs_header = ["Pair", "Task", "Difference, points", "95 % interval (t, over seeds)"]
    return [
        Table(header, rows),
        Details("Pair by pair", [Table(pairs_header, pairs, frozenset({0, 1}))]),
    ]


def _cost(content: Content) -> list[Node]:
    parts = list(analysis.costs(content))
    if not parts:
        return []
    faces = analysis.train_faces(content)
    nodes: list[Node] = [
        Heading(2, "What do they cost?", "cost"),
        Text(
            "In float32 unless stated otherwise, with batches that are on the device already. Each "
            "framework runs in a process of its own; they take turns, and a rate is the median "
            "over turns. Settings are a framework's default and what its users try to make it "
            "faster."
        ),
    ]
    nodes += [
        Text(
            f"{NETWORKS[part['model']]}: other programs used the cores of this machine during this "
            "measurement, which slows down threads that wait for each other most. These ratios "
            "are rough.",
            "warning",
        )
        for part in parts
        if analysis.is_busy(part, content)
    ]
    nodes.append(
        to_image(
            figures.cost(parts),
            "cost",
            "Images per second in training and inference by framework and settings",
            "Longer is faster; each panel has its own scale.",
        )
    )
    header = ["Framework and settings", "First step", "Training, images/s"]
    header += ["Inference, images/s", "Peak memory", "Report's five epochs, projected"]
    for part in parts:
        rows = [_cost_row(part, v, faces) for v in part["variants"].values()]
        title = f"{NETWORKS[part['model']]}, {part['size']} px, batch {part['batch_size']}"
        nodes += [Heading(3, title), Table(header, rows)]
        best = ", ".join(
            f"{NAMES[s.framework]} {analysis.speed(s.rate)} ({s.variant})"
            for s in analysis.fastest(part, "training")
        )
        report = analysis.published(part["model"])
        own = f" The report's, for age: {duration(report[0][2])}, on its machine." if report else ""
        nodes.append(note(f"Fastest settings in training: {best}.{own}"))
    projected = f"Projected for the {faces:,} training faces of this fold: {analysis.PROJECTION} "
    nodes.append(
        note(
            "First step: from the start of the process to the end of one step of training. "
            f"{projected * bool(faces)}"
            "Peak memory: of the process after training; on a GPU what the framework allocated."
        )
    )
    return nodes


def _cost_row(part: Part, variant: dict[str, Any], faces: int) -> Row:
    # What Keras chose for "auto".
    jit = f", jit_compile={variant['jit_compile']}" if "jit_compile" in variant else ""
    name = Cell(f"{NAMES[variant['framework']]}, {variant['variant']}", variant["text"] + jit)
    if "error" in variant:
        return [name, Cell("failed", variant["error"]), NONE, NONE, NONE, NONE]
    training, inference = analysis.rate(variant, "training"), analysis.rate(variant, "inference")
    projected = None
    if training and inference:
        projected = analysis.five_epochs(part, faces, training, inference)
    return [
        name,
        duration(variant["first_step_seconds"]),
        *(_rate(variant, stage) for stage in ("training", "inference")),
        f"{variant['training_peak_bytes'] / 2**30:.2f} GiB",
        duration(projected) if projected else NONE,
    ]


def _rate(variant: Mapping[str, Any], stage: str) -> Cell:
    """Images per second, and the range over turns."""
    if not (rate := analysis.rate(variant, stage)):
        return NONE
    low, high = (analysis.speed(end(variant[stage])) for end in (min, max))
    more = f"{low}–{high}" if len(variant[stage]) > 1 else ""
    return Cell(analysis.speed(rate), more, strong=True)


def _settings(content: Content) -> list[Node]:
    words = frozenset({0, 1})
    nodes: list[Node] = []
    failed: list[Row] = [[k, p["error"]] for k, p in content["parts"].items() if "error" in p]
    if failed:
        nodes = [Heading(2, "What failed", "failed"), Table(["Part", "Error"], failed, words)]
    settings: list[Row] = [[key, _short(value)] for key, value in content["settings"].items()]
    header = ["Part", "Finished", "Time", "Load", "Batch", "Environment"]
    parts: list[Row] = [
        [
            key,
            part["finished"],
            duration(part["took"]),
            str(part["load"]),
            str(part.get("batch_size", "")),
            ", ".join(f"{n}={v}" for n, v in part["environment"].items()),
        ]
        for key, part in content["parts"].items()
    ]
    return [
        *nodes,
        Heading(2, "Settings", "settings"),
        Details("Settings of the comparison", [Table(["Setting", "Value"], settings, words)]),
        Details(f"All parts ({len(parts)})", [Table(header, parts, words | {5})]),
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
