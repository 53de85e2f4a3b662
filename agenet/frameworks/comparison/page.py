"""The pages of a comparison of frameworks, in the look of `agenet report`."""

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
    Table,
    Text,
    images,
    to_html,
    to_markdown,
)
from agenet.evaluation.published import SOURCES
from agenet.evaluation.summary import duration, percent, signed
from agenet.files import write_file
from agenet.frameworks.comparison import figures
from agenet.frameworks.comparison.engine import LEFT, flavour_of
from agenet.frameworks.comparison.findings import (
    NAMES,
    NETWORKS,
    PROJECTION,
    REGIMES,
    ROUNDING,
    TASKS,
    TOLD,
    Content,
    Part,
    Trainings,
    costs,
    excesses,
    fastest,
    figures_of,
    findings,
    five_epochs,
    is_busy,
    largest_class,
    machine_of,
    published,
    rate,
    speed,
    spread,
    steps_text,
    train_faces,
    trainings,
)
from agenet.frameworks.comparison.results import read_results

PAGE, TEXT, PICTURES = "frameworks.html", "frameworks.md", "frameworks_pictures"
TITLE = "One network, three frameworks"
_KINDS = {
    "exact": "From PyTorch in float64",
    "pair": "One framework from another",
    "rounding": "Rounding alone: the same framework, its pictures changed in their last bit",
}


def write_pages(folder: Path) -> list[Path]:
    """One HTML page that needs nothing else, and the same in Markdown.

    Raises:
        UserError: results.json is damaged.
    """
    nodes = compose(read_results(folder))
    drawn = {image.name: image.content for image in images(nodes)}
    (folder / PICTURES).mkdir(exist_ok=True)
    for name, content in drawn.items():
        write_file(folder / PICTURES / name, content)
    write_file(folder / TEXT, to_markdown(nodes, PICTURES).encode())
    write_file(folder / PAGE, to_html(TITLE, nodes).encode())
    return [folder / PAGE, folder / TEXT]


def compose(content: Content) -> list[Node]:
    """The document, from the results alone."""
    nodes: list[Node] = [Heading(1, TITLE)]
    for number, finding in enumerate(findings(content), 1):
        nodes += [Heading(3, f"{number}. {finding.text}"), Text(finding.evidence, "note")]
    nodes += [
        Heading(2, "What was compared", "compared"),
        *_compared(content),
        *_agreement(content),
        *_results(content),
        *_cost(content),
        Heading(2, "The reference report", "report"),
        reference(),
        Text(
            "As the report prints them: its own machine, five epochs, an undocumented split, and "
            "PyTorch for the first two networks, Keras for the third.",
            "note",
        ),
        *_settings(content),
        Heading(3, "Sources"),
        Listing(SOURCES),
    ]
    return nodes


def _compared(content: Content) -> list[Node]:
    data = content.get("data", {})
    rows = []
    for name, about in content.get("frameworks", {}).items():
        parts = [p for p in content["parts"].values() if p.get("framework") == name]
        parts += [
            v for p in costs(content) for v in p["variants"].values() if v["framework"] == name
        ]
        versions: dict[str, str] = {}
        for part in parts:
            versions |= part.get("versions", {})
        failed = sum("error" in part for part in parts)
        state = f"{about['missing']} is not installed" if about["missing"] else "ran"
        state = f"{failed} of {len(parts)} parts failed, see below" if failed else state
        devices = sorted({part["device"] for part in parts if "device" in part})
        shown = ", ".join(f"{n} {v}" for n, v in versions.items())
        rows.append([Cell(NAMES[name]), Cell(shown or "–"), Cell(", ".join(devices)), Cell(state)])
    machines = [machine_of(part, content) for part in content["parts"].values()]
    machines += [machine_of(v, content) for p in costs(content) for v in p["variants"].values()]
    shown_machines = dict.fromkeys(
        f"Machine: {m['processor']}, {m['cores']} cores, {m['memory_bytes'] / 2**30:.0f} GiB, "
        f"{m['system']}, Python {m['python']}, agenet {m['agenet']}."
        for m in machines or [content["machine"]]
    )
    nodes: list[Node] = [
        Table(["Framework", "Versions", "Device", "State"], rows, frozenset(range(4))),
        *map(Text, shown_machines),
    ]
    if data:
        initial = "; ".join(f"{NETWORKS[m]}: {text}" for m, text in data["initial"].items())
        nodes += [
            Text(
                f"Data: {data['name']} (fingerprint {data['fingerprint']}), tested on fold "
                f"{data['test_fold']}, split {data['split']}: {data['train_faces']:,} of "
                f"{data['all_train_faces']:,} training faces and {data['test_faces']:,} of "
                f"{data['all_test_faces']:,} test faces of {data['test_persons']:,} persons, drawn "
                f"with seed {data['split_seed']}. {data['notice']}".strip()
            ),
            Text(f"Weights at the start, the same in all frameworks. {initial}."),
        ]
    networks = sorted({p["model"] for p in content["parts"].values() if "model" in p})
    computed = ", ".join(f"{NETWORKS[m]} as {flavour_of(m)}" for m in networks)
    nodes.append(
        Text(
            f"Networks of one name differ between libraries in padding, strides and constants of "
            f"batch normalisation; here all compute alike ({computed}). What is left: "
            f"{'; '.join(LEFT)}.",
            "note",
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
            "From the same weights, on the same pictures in the same order, without dropout, "
            "dropped branches and augmentation: logits before training, loss and gradients of the "
            "first batch, parameters after some steps. Training amplifies rounding, so beside "
            "every difference stands what the last bit of the pictures alone brings about. Where "
            f"{ROUNDING:.0f} times that is more than {percent(TOLD)} % of the whole, nothing can "
            "be told from rounding, not even that a framework has not trained at all."
        ),
        to_image(
            figures.agreement(parts),
            "agreement",
            "Relative differences from float64 and by rounding alone, over steps of training",
            "Full lines: a framework from PyTorch in float64. Dotted: the same framework from "
            "itself when its pictures change in their last bit. Where the full lines lie near the "
            "dotted ones, what differs may be rounding; where dotted ones are above the grey line, "
            "nothing else can be told.",
        ),
    ]
    header = ["Compared", "Logits", "Loss", "Gradients", "largest leaf"]
    steps = list(parts[0]["rows"][0]["steps"])
    header += [f"Parameters, {steps_text(step)}" for step in steps]
    header += [f"Statistics, {steps_text(steps[0])}"]
    told = {(e.model, e.optimizer, e.dtype, e.a, e.b, e.what): e.told for e in excesses(content)}
    for part in parts:
        optimizer = {"sgd": "SGD with momentum", "adam": "Adam"}[part["optimizer"]]
        title = f"{NETWORKS[part['model']]}, {part['size']} px, {optimizer}"
        rows: list[Sequence[Cell] | str] = []
        for kind, band in _KINDS.items():
            of_kind = [row for row in part["rows"] if row["kind"] == kind]
            rows += [band] * bool(of_kind)
            rows += [_difference_row(part, row, told) for row in of_kind]
        nodes += [Heading(3, title), Table(header, rows)]
    nodes.append(
        Text(
            "Logits and statistics: the largest difference over the largest value. Gradients: the "
            "length of the difference over the length of the whole; beside it the largest "
            "difference of one leaf, which a single unit at the kink of a ReLU decides. "
            "Parameters: the length of the difference over the way that training has moved them.",
            "note",
        )
    )
    return nodes


def _difference_row(part: Part, row: dict[str, Any], told: dict[Any, bool]) -> list[Cell]:
    name = NAMES[row["a"]] + (f" and {NAMES[row['b']]}" if row["kind"] == "pair" else "")
    values = {"logits": row["logits"], "loss": row["loss"], **figures_of(row)}
    values["statistics"] = next(iter(row["steps"].values())).get("statistics")
    cells = []
    for what, value in values.items():
        place = (part["model"], part["optimizer"], row["dtype"], row["a"], row["b"], what)
        hidden = row["kind"] == "pair" and not told.get(place, True)
        text = "0" if value == 0 else f"{value:.0e}" if value is not None else NONE.text
        cells.append(Cell(text, "not told from rounding" * hidden))
        if what == "gradients":
            cells.append(Cell(f"{row['gradients']['largest']:.0e}"))
    return [Cell(name, "" if row["dtype"] == "float32" else row["dtype"]), *cells]


def _results(content: Content) -> list[Node]:
    groups = trainings(content)
    if not groups:
        return []
    settings = content["settings"]
    nodes: list[Node] = [
        Heading(2, "Do they reach the same results?", "results"),
        Text(
            f"{settings['epochs']} epochs with Adam at 1e-4 and batches of "
            f"{settings['results_batch']}, from the same weights and in the same order for "
            "the same seed: once with nothing else that is random, once with dropout, dropped "
            "branches, random crops and mirror images as each framework has them (Keras's "
            "RandomCrop cuts a whole batch at one place)."
        ),
    ]
    for (model, size, regime), group in groups.items():
        name = f"{NETWORKS[model]}, {size} px, {REGIMES[regime]}"
        anchor = f"results-{model}-{regime}".replace("_", "-")
        nodes += [
            Heading(3, name),
            to_image(
                figures.results(group),
                anchor,
                f"Accuracy on the test by framework and seed: {name}",
                "A dot: one training; a line joins those of one seed. The bar: the mean.",
            ),
            _results_table(group, model, largest_class(content)),
            *_test(group),
        ]
    pairs = sum(
        len(found.pairs)
        for group in groups.values()
        for task in TASKS
        if (found := spread(group, f"{task}_accuracy"))
    )
    nodes.append(
        Text(
            "±: standard deviation over seeds (sample, n - 1). Below an accuracy: the 95 % "
            "interval of the first seed's training by a bootstrap over persons, that is what other "
            "persons in the test might have changed. p: all orders of the frameworks within the "
            "seeds, the statistic being the variance of the frameworks' means; it is not yet "
            "multiplied by the number of comparisons, as it is at the top. Nor are the intervals "
            f"of the {pairs} pairs adjusted for their number: of so many one in twenty leaves out "
            "zero by chance.",
            "note",
        )
    )
    return nodes


def _results_table(group: Trainings, model: str, shares: Mapping[str, float]) -> Table:
    header = ["Framework", "Seeds", "Age %", "Age loss", "Gender %", "Gender loss"]
    header += ["Training loss", "A training took"]
    rows: list[Sequence[Cell] | str] = []
    for name, of_seed in group.items():
        first = of_seed[min(of_seed)]
        last = [part["epochs"][-1] for part in of_seed.values()]
        cells = [Cell(NAMES[name]), Cell(str(len(of_seed)))]
        for task in TASKS:
            values = [100 * figures_[f"{task}_accuracy"] for figures_ in last]
            ends = first["intervals"][task]
            more = f"{percent(ends[0])}–{percent(ends[1])}" if ends else ""
            cells += [Cell(_mean(values, 1), more, strong=True)]
            cells += [Cell(_mean([figures_[f"{task}_loss"] for figures_ in last], 3))]
        cells.append(Cell(_mean([figures_["training_loss"] for figures_ in last], 3)))
        cells.append(Cell(duration(statistics.median(p["took"] for p in of_seed.values()))))
        rows.append(cells)
    if shares:
        rows.append("Without a network")
        age, gender = (Cell(f"{100 * shares[task]:.1f}") for task in TASKS)
        always = Cell("Always the largest class of these test faces")
        rows.append([always, NONE, age, NONE, gender, NONE, NONE, NONE])
    if report := published(model):
        # Its split and its recipe are others: beside them, not among them.
        rows.append("The reference report [3]")
        figures_ = [Cell(text) for accuracy, loss, _ in report for text in (accuracy, loss)]
        took = duration(sum(seconds for _, _, seconds in report))
        rows.append([Cell("As it prints them"), Cell("1"), *figures_, NONE, Cell(took)])
    return Table(header, rows)


def _mean(values: Sequence[float], digits: int) -> str:
    text = f"{statistics.fmean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _test(group: Trainings) -> list[Node]:
    rows, pairs = [], []
    for task in TASKS:
        found = spread(group, f"{task}_accuracy")
        if found is None:
            continue
        rows.append(
            [
                Cell(task.capitalize()),
                Cell(percent(found.between)),
                Cell(percent(found.seed_deviation)),
                Cell(percent(found.framework_deviation)),
                Cell(f"{found.p:.2g}"),
                Cell(f"{found.least_p:.2g}"),
            ]
        )
        for a, b, mean, low, high in found.pairs:
            ends = f"{signed(100 * low)} to {signed(100 * high)}"
            cells = [Cell(f"{NAMES[b]} over {NAMES[a]}"), Cell(task), Cell(signed(100 * mean))]
            pairs.append([*cells, Cell(ends)])
    if not rows:
        return [Text("One framework, or one seed: nothing to test.", "note")]
    header = ["Accuracy, points", "Between frameworks' means", "Between seeds (deviation)"]
    header += ["Between frameworks, one seed (deviation)", "p", "least p possible"]
    pairs_header = ["Pair", "Task", "Difference, points", "95 % interval (t, over seeds)"]
    return [
        Table(header, rows),
        Details("Pair by pair", [Table(pairs_header, pairs, frozenset({0, 1}))]),
    ]


def _cost(content: Content) -> list[Node]:
    parts = list(costs(content))
    if not parts:
        return []
    faces = train_faces(content)
    nodes: list[Node] = [
        Heading(2, "What do they cost?", "cost"),
        Text(
            "Float32 where nothing else is said, a batch that is where the computation is, each "
            "framework in a process of its own; they take turns, and a speed is the median of the "
            "turns. Settings: as a framework is by default, and what its users try to make it "
            "faster."
        ),
    ]
    for part in parts:
        if is_busy(part, content):
            nodes.append(
                Text(
                    f"{NETWORKS[part['model']]}: while this was measured, other programs wanted "
                    "the cores of this machine. Threads that wait for each other suffer most: "
                    "read these as rough ratios, no more.",
                    "warning",
                )
            )
    nodes.append(
        to_image(
            figures.cost(parts),
            "cost",
            "Pictures per second in training and inference by framework and settings",
            "Longer is faster; each panel has its own scale.",
        )
    )
    header = ["Framework and settings", "First step", "Training, pictures/s"]
    header += ["Inference, pictures/s", "Peak memory", "Report's five epochs, projected"]
    for part in parts:
        rows = [_cost_row(part, v, faces) for v in part["variants"].values()]
        title = f"{NETWORKS[part['model']]}, {part['size']} px, batch {part['batch_size']}"
        nodes += [Heading(3, title), Table(header, rows)]
        best = ", ".join(
            f"{NAMES[s.framework]} {speed(s.rate)} ({s.variant})" for s in fastest(part, "training")
        )
        report = published(part["model"])
        own = (
            f" The report's, for ages: {duration(report[0][2])}, on its machine." if report else ""
        )
        nodes.append(Text(f"Each at its best in training: {best}.{own}", "note"))
    projected = f"Projected, for the {faces:,} training faces of this fold: {PROJECTION} "
    nodes.append(
        Text(
            "First step: from the start of the process to the end of one step of training. "
            f"{projected * bool(faces)}"
            "Peak memory: of the process after training, on a GPU the framework's share of the "
            "device's.",
            "note",
        )
    )
    return nodes


def _cost_row(part: Part, variant: dict[str, Any], faces: int) -> list[Cell]:
    # What Keras has made of its "auto".
    jit = f", jit_compile={variant['jit_compile']}" if "jit_compile" in variant else ""
    name = Cell(f"{NAMES[variant['framework']]}, {variant['variant']}", variant["text"] + jit)
    if "error" in variant:
        return [name, Cell("failed", variant["error"]), NONE, NONE, NONE, NONE]
    training, inference = rate(variant, "training"), rate(variant, "inference")
    projected = None
    if training and inference:
        projected = five_epochs(part, faces, training, inference)
    return [
        name,
        Cell(duration(variant["first_step_seconds"])),
        Cell(speed(training), _range(variant["training"]), strong=True) if training else NONE,
        Cell(speed(inference), _range(variant["inference"]), strong=True) if inference else NONE,
        Cell(f"{variant['training_peak_bytes'] / 2**30:.2f} GiB"),
        Cell(duration(projected)) if projected else NONE,
    ]


def _range(turns: Sequence[float]) -> str:
    return f"{speed(min(turns))}–{speed(max(turns))}" if len(turns) > 1 else ""


def _settings(content: Content) -> list[Node]:
    failed = [(k, p["error"]) for k, p in content["parts"].items() if "error" in p]
    nodes: list[Node] = []
    if failed:
        rows = [[Cell(key), Cell(error)] for key, error in failed]
        nodes += [
            Heading(2, "What failed", "failed"),
            Table(["Part", "Error"], rows, frozenset({0, 1})),
        ]
    rows = [[Cell(k), Cell(_short(v))] for k, v in content["settings"].items()]
    settings = Table(["Setting", "Value"], rows, frozenset({0, 1}))
    header = ["Part", "Finished", "Took", "Load", "Batch", "Environment"]
    rows = [
        [
            Cell(key),
            Cell(part["finished"]),
            Cell(duration(part["took"])),
            Cell(str(part["load"])),
            Cell(str(part.get("batch_size", ""))),
            Cell(", ".join(f"{n}={v}" for n, v in part["environment"].items())),
        ]
        for key, part in content["parts"].items()
    ]
    return [
        *nodes,
        Heading(2, "Settings of every number", "settings"),
        Details("Settings of the whole", [settings]),
        Details(f"All parts ({len(rows)})", [Table(header, rows, frozenset({0, 1, 5}))]),
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
