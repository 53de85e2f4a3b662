"""The same network, weights and faces in JAX, PyTorch and Keras: what differs, and what it costs.

python scripts/compare_frameworks.py --out=comparison/frameworks            # a laptop: half an hour
python scripts/compare_frameworks.py --out=comparison/report --scale=report # as the report trained
python scripts/compare_frameworks.py --out=comparison/frameworks --page     # the pages alone

Every framework runs in a process of its own. All start from the same weights, which travel through
the name maps of `agenet.weights.names`, and see the same pictures in the same order. What is there
is not repeated: an interrupted comparison goes on with the same command. Everything that the pages
say is in results.json.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agenet.errors import ArgumentParser, UserError, one_line_errors  # noqa: E402
from scripts.bench_engines import Figures  # noqa: E402
from scripts.bench_worker import Worker  # noqa: E402
from scripts.compare_engines import (  # noqa: E402
    ENGINES,
    VARIANTS,
    Faces,
    Work,
    flavour_of,
    not_installed,
    read_faces,
    write_faces,
)

RESULTS = "results.json"
# Settings by what there is time for; sizes in pixels by network.
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "agreement": {"levi_hassner": 99, "efficientnet_lite0": 64},
        "results": {"efficientnet_lite0": 64},
        "cost": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "train_faces": 1920,
        "test_faces": 1500,
        "agreement_batch": 16,
        "results_batch": 32,
        "cost_batch": 8,
        "epochs": 2,
        "seeds": 4,  # with three, no difference could be seen to be more than chance
    },
    "report": {
        "agreement": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "results": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "cost": {"levi_hassner": 227, "resnet50": 224, "efficientnet_b0": 224},
        "train_faces": 0,
        "test_faces": 0,
        "agreement_batch": 32,
        "results_batch": 50,
        "cost_batch": 50,
        "epochs": 5,
        "seeds": 5,
    },
}
PARTS = ("agreement", "results", "cost")
# Of settings, what only adds to what is there.
_MORE = {"seeds", "parts", "frameworks", "variants", "limit", "rounds", "seconds"}
_ENVIRONMENT = ("OMP_NUM_THREADS", "GLIBC_TUNABLES", "XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is not there yet, and writes the pages.

    Raises:
        UserError: an option names what there is not, or the folder holds another comparison.
    """
    args = parse(arguments)
    if not args.page:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others share the device
        args.out.mkdir(parents=True, exist_ok=True)
        results = Results(args.out, settings_of(args))
        run(results, args)
    # Imported here: what is measured needs no Matplotlib.
    from scripts.compare_page import write_pages

    for path in write_pages(args.out):
        print(path)


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The options, with lists as lists and what is not given from the scale."""
    parser = ArgumentParser(
        prog="python scripts/compare_frameworks.py",
        description="Runs one network in JAX, PyTorch and Keras from the same weights on the same "
        "faces, and writes what differs and what it costs to results.json and two pages.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results and pages")
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES),
        default="laptop",
        help="laptop: small, half an hour on two cores; report: sizes, faces and epochs of the "
        "reference report, for a GPU",
    )
    parser.add_argument("--page", action="store_true", help="only write the pages anew")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--frameworks", default=",".join(ENGINES), help=f"of {', '.join(ENGINES)}")
    for part in PARTS:
        parser.add_argument(
            f"--{part}", metavar="NETWORK:SIZE,...", help=f"networks of the part {part}"
        )
    for name, text in (
        ("train_faces", "to train on, drawn from the training set; 0: all"),
        ("test_faces", "to test on, drawn from the test fold; 0: all"),
        ("agreement_batch", "batch size of the agreement"),
        ("results_batch", "batch size of the results"),
        ("cost_batch", "batch size of the cost"),
        ("epochs", "of a training"),
        ("seeds", "trainings of each framework; more can be added later"),
    ):
        parser.add_argument(f"--{name}", type=int, help=text)
    parser.add_argument(
        "--steps", default="1,10,100", help="of the agreement, where parameters are compared"
    )
    parser.add_argument("--dataset", default="adience/faces", help="default: adience/faces")
    parser.add_argument("--data_dir", default="", help="where it is prepared")
    parser.add_argument("--test_fold", type=int, default=0)
    parser.add_argument(
        "--init", default="imagenet", help="imagenet (where there is such) or random"
    )
    parser.add_argument("--platform", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    parser.add_argument("--variants", default="", help="of the cost, besides the usual: compiled")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each in the cost")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least one step")
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds after which a framework is given up"
    )
    args = parser.parse_args(arguments)
    scale = SCALES[args.scale]
    for name, value in scale.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif name in PARTS:
            setattr(args, name, _networks(f"--{name}", getattr(args, name)))
    for name in ("agreement_batch", "results_batch", "cost_batch", "epochs", "seeds", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    try:
        args.steps = sorted({int(step) for step in args.steps.split(",")})
        if args.steps[0] < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--steps={args.steps} must be numbers from 1, such as 1,10,100") from None
    args.parts = _chosen("--parts", args.parts, PARTS)
    args.frameworks = _chosen("--frameworks", args.frameworks, ENGINES)
    args.variants = _chosen("--variants", args.variants, {n for v in VARIANTS.values() for n in v})
    args.platform = args.platform or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    if args.page and not (args.out / RESULTS).is_file():
        raise UserError(f"--page: there is no {args.out / RESULTS}: leave --page out")
    return args


def _chosen(option: str, text: str, known: Any) -> list[str]:
    names = [name for name in map(str.strip, text.split(",")) if name]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: {name!r} is not one of {', '.join(sorted(known))}")
    return names


def _networks(option: str, text: str) -> dict[str, int]:
    """From "levi_hassner:99,resnet50:64"."""
    sizes = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in ("levi_hassner", "resnet50", "efficientnet_lite0") and not (
            name.startswith("efficientnet_b")
        ):
            raise UserError(
                f"{option}: {name!r} is not in every framework: levi_hassner, resnet50, "
                "efficientnet_lite0, efficientnet_b0 to b7"
            )
        if not size.isdecimal() or int(size) < 32:
            raise UserError(f"{option}: {part!r} must be NETWORK:SIZE, of at least 32 pixels")
        sizes[name] = int(size)
    return sizes


def settings_of(args: Namespace) -> dict[str, Any]:
    """All that a number can depend on, as JSON has it."""
    left_out = {"out", "page"}
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k not in left_out}))


class Results:
    """results.json: what has been measured, saved after each part."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Opens or begins one.

        Raises:
            UserError: the folder holds a comparison with other settings.
        """
        self.folder, self.path = folder, folder / RESULTS
        fresh = {"settings": settings, "machine": describe_machine(), "parts": {}}
        self.content: dict[str, Any] = read_results(folder) if self.path.is_file() else fresh
        old = self.content["settings"]
        other = [k for k, v in settings.items() if k not in _MORE and old.get(k) != v]
        if other:
            name = other[0]
            raise UserError(
                f"{folder} holds a comparison with --{name}={old.get(name)}, not {settings[name]}: "
                "name another --out"
            )
        self.content["settings"] = settings

    def has(self, key: str) -> bool:
        """Whether a part is there; one that has failed is tried once more."""
        part = self.content["parts"].get(key)
        return part is not None and "error" not in part

    def add(self, key: str, settings: Mapping[str, Any], result: Figures, started: float) -> None:
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        self.content["parts"][key] = {
            **settings,
            **result,
            "took": time.time() - started,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "load": round(os.getloadavg()[0], 1),
            "environment": environment,
        }
        self.save()

    def save(self) -> None:
        from agenet.writers import write_file

        write_file(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any]:
    """Raises `UserError` if results.json is damaged."""
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text())
        if not all(isinstance(content[k], dict) for k in ("settings", "machine", "parts")):
            raise ValueError("a section is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): name another --out") from error
    return dict(content)


def describe_machine() -> dict[str, Any]:
    """What every number was measured on."""
    from agenet.data.resident import available_cores
    from agenet.experiment import _processor_name

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor_name(),
        "cores": available_cores(),
        "memory_bytes": pages,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "agenet": importlib.import_module("agenet").__version__,
    }


def run(results: Results, args: Namespace) -> None:
    """All parts that are asked for and not there."""
    content = results.content
    content["frameworks"] = {
        name: {"missing": not_installed(name, "")} for name in ENGINES if name in args.frameworks
    }
    there = [name for name, about in content["frameworks"].items() if not about["missing"]]
    for name, about in content["frameworks"].items():
        if about["missing"]:
            log(f"{name}: left out, {about['missing']} is not installed")
    prepare_data(results, args)
    if "agreement" in args.parts:
        for model, size in args.agreement.items():
            for optimizer in ("sgd", "adam"):
                agree(results, args, there, model, size, optimizer)
    if "results" in args.parts:
        for model, size in args.results.items():
            for regular in (False, True):
                train(results, args, there, model, size, regular)
    if "cost" in args.parts:
        for model, size in args.cost.items():
            measure(results, args, there, model, size)


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def prepare_data(results: Results, args: Namespace) -> None:
    """Faces and initial weights of each network and size, as files that all frameworks read."""
    wanted = {
        (model, size)
        for part in ("agreement", "results")
        for model, size in getattr(args, part).items()
    }
    cost = {(m, s) for m, s in args.cost.items() if "cost" in args.parts}
    missing = [pair for pair in sorted(wanted | cost) if not _folder(results, *pair).is_dir()]
    seeds = [
        (m, s, seed)
        for m, s in sorted(wanted)
        for seed in range(args.seeds)
        if not _initial(results, m, s, seed).exists()
    ]
    if not missing and not seeds:
        return
    from agenet.data.records import open_records
    from agenet.data.resident import load_faces
    from agenet.data.splits import make_splits

    log("reading the data set")
    records = open_records(args.dataset, args.data_dir)
    splits = make_splits(
        records,
        tasks=("age", "gender"),
        protocol="subject",
        test_fold=args.test_fold,
        validation_fraction=0.1,
        seed=0,
    )
    rng = np.random.default_rng(0)
    train, test = (
        np.sort(rng.permutation(rows)[: count or len(rows)])
        for rows, count in ((splits.train, args.train_faces), (splits.test, args.test_faces))
    )
    data: dict[str, Any] = {
        "name": records.name,
        "fingerprint": records.fingerprint(),
        "notice": records.notice,
        "test_fold": args.test_fold,
        "split": "over persons",
        "split_seed": 0,
        "all_train_faces": len(splits.train),
        "all_test_faces": len(splits.test),
        "train_faces": len(train),
        "test_faces": len(test),
        "test_persons": len(np.unique(records.subject_id[test])),
    }
    results.content["data"] = data | {"initial": results.content.get("data", {}).get("initial", {})}
    labels = np.stack([records.labels[task] for task in ("age", "gender")], 1).astype(np.int32)
    rows = np.concatenate([train, test])
    for model, size in missing:
        log(f"{model}, {size} px: faces")
        # The cost is measured on noise.
        used = rows if (model, size) in wanted else rows[:1]
        mean, std = _normalisation(model, args.init)
        folder = _folder(results, model, size)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_faces(
            unfinished,
            images=load_faces(records, used, round(size * 8 / 7)),
            labels=labels[used],
            train=np.arange(len(train)),
            test=np.arange(len(train), len(rows)),
            mean=np.array(mean, np.float32),
            std=np.array(std, np.float32),
        )
        np.save(unfinished / "subject.npy", records.subject_id[used])
        unfinished.rename(folder)
    for model, size, seed in seeds:
        log(f"{model}, {size} px: initial weights, seed {seed}")
        text = write_initial(_initial(results, model, size, seed), model, size, seed, args.init)
        results.content["data"]["initial"][model] = text
    results.save()


def _folder(results: Results, model: str, size: int) -> Path:
    return results.folder / "data" / f"{model}-{size}"


def _initial(results: Results, model: str, size: int, seed: int) -> Path:
    return results.folder / "data" / f"{model}-{size}-seed{seed}.safetensors"


def _find(model: str, init: str) -> tuple[Any, str]:
    """Pre-trained weights of the network that all frameworks compute, or why there are none."""
    from agenet.initial import find_initial

    if init == "random" or model == "levi_hassner":
        return None, "random"
    try:
        initial = find_initial(init, model, flavour_of(model))
        assert initial is not None
        initial.read()
    except UserError as error:
        return None, f"random ({str(error).splitlines()[0][:200]})"
    return initial, f"{initial.init}, a new classifier"


def _normalisation(model: str, init: str) -> tuple[Sequence[float], Sequence[float]]:
    from agenet.experiment import IMAGENET_MEAN, IMAGENET_STD

    initial, _ = _find(model, init)
    return (initial.mean, initial.std) if initial else (IMAGENET_MEAN, IMAGENET_STD)


def write_initial(path: Path, model: str, size: int, seed: int, init: str) -> str:
    """Variables by agenet's names, for all frameworks; and what they are."""
    import jax
    import safetensors.numpy
    from flax.traverse_util import flatten_dict

    from agenet.models import create_model
    from agenet.state import create_variables
    from agenet.weights.load import load_into
    from scripts.compare_engines import OUTPUTS

    network = create_model(model, {"classes": OUTPUTS}, flavour=flavour_of(model))
    variables: Any = jax.jit(lambda: create_variables(network, size, seed))()
    initial, text = _find(model, init)
    if initial is not None:
        variables = load_into(jax.device_get(variables), initial.read(), ("heads",))
    flat = flatten_dict(variables, sep="/")
    tensors = {name: np.array(leaf) for name, leaf in flat.items()}
    unfinished = path.with_suffix(".unfinished")
    safetensors.numpy.save_file(tensors, unfinished)
    unfinished.rename(path)
    return text


def _worker(name: str, work: Work, args: Namespace) -> Worker:
    return Worker(name, work, args.limit, ENGINES, not_installed)


def agree(
    results: Results, args: Namespace, there: list[str], model: str, size: int, optimizer: str
) -> None:
    """Logits, gradients and parameters of each framework, and how far they are apart."""
    from scripts.compare_difference import differences

    out = results.folder / "agreement"
    out.mkdir(exist_ok=True)
    work = Work(
        model,
        size,
        platform=args.platform,
        folder=_folder(results, model, size).resolve(),
        optimizer=optimizer,
        exact=True,
    )
    runs = [(name, "float32") for name in there]
    # What all are measured against; on a GPU also what people use.
    runs += [("torch", "float64")] if "torch" in there else []
    runs += [(name, "bfloat16") for name in there] if args.platform == "gpu" else []
    batch, changed = args.agreement_batch, False
    prefix = f"agreement/{model}/{size}/{optimizer}"
    for name, dtype in runs:
        # Rounding alone: the same once more, from pictures that are off in their last bit.
        keys = {False: f"{prefix}/{name}/{dtype}", True: f"{prefix}/{name}/{dtype}/perturbed"}
        left = {moved: key for moved, key in keys.items() if not results.has(key)}
        if dtype == "float64":
            left.pop(True, None)
        if not left:
            continue
        changed = True
        with _worker(name, dataclasses.replace(work, dtype=dtype), args) as worker:
            log(f"agreement: {model}, {optimizer}: starting {name}, {dtype}")
            described = worker.start()
            for perturbed, key in left.items():
                log(key)
                started = time.time()
                stem = key.removeprefix("agreement/").replace("/", "-")
                file = (out / f"{stem}.safetensors").resolve()
                initial = _initial(results, model, size, 0).resolve()
                answer = worker.ask("agree", initial, file, batch, args.steps, perturbed)
                about = {"framework": name, "model": model, "size": size, "dtype": dtype}
                about |= {"optimizer": optimizer, "batch_size": batch, "perturbed": perturbed}
                about |= {"file": file.name, "steps": args.steps}
                results.add(key, about, described | answer, started)
    if changed or not results.has(f"differences/{model}/{size}/{optimizer}"):
        parts = {k: p for k, p in results.content["parts"].items() if k.startswith(prefix + "/")}
        started = time.time()
        rows = differences(out, parts, _initial(results, model, size, 0))
        about = {"model": model, "size": size, "optimizer": optimizer}
        results.add(f"differences/{model}/{size}/{optimizer}", about, {"rows": rows}, started)


def train(
    results: Results, args: Namespace, there: list[str], model: str, size: int, regular: bool
) -> None:
    """Trainings of each framework with each seed, and the test after each epoch."""
    out = results.folder / "answers"
    out.mkdir(exist_ok=True)
    regime = "regular" if regular else "plain"
    work = Work(
        model,
        size,
        platform=args.platform,
        folder=_folder(results, model, size).resolve(),
        regular=regular,
    )
    for name in there:
        keys = {s: f"results/{model}/{size}/{regime}/{name}/{s}" for s in range(args.seeds)}
        left = {seed: key for seed, key in keys.items() if not results.has(key)}
        if not left:
            continue
        with _worker(name, work, args) as worker:
            log(f"results: {model}, {regime}: starting {name}")
            described = worker.start()
            for seed, key in left.items():
                log(key)
                started = time.time()
                file = (out / f"{key.removeprefix('results/').replace('/', '-')}.npy").resolve()
                initial = _initial(results, model, size, seed).resolve()
                answer = worker.ask(
                    "train_all", initial, file, args.results_batch, args.epochs, seed
                )
                about = {"framework": name, "model": model, "size": size, "regime": regime}
                about |= {"seed": seed, "batch_size": args.results_batch, "optimizer": "adam"}
                result = answer if isinstance(answer, dict) else {"epochs": answer}
                if "epochs" in result:
                    result |= {"intervals": test_intervals(work.folder, file)}
                results.add(key, about | {"file": file.name}, described | result, started)


def test_intervals(folder: Path, file: Path) -> dict[str, Any]:
    """What other persons in the test could have changed, by a bootstrap over persons."""
    from agenet.metrics import estimate_with_intervals
    from scripts.compare_engines import AGE

    faces: Faces = read_faces(folder)
    logits, labels = np.load(file), faces.labels[faces.test]
    _, person = np.unique(np.load(folder / "subject.npy")[faces.test], return_inverse=True)
    persons, intervals = int(person.max()) + 1, {}
    for column, task in enumerate(("age", "gender")):
        part = logits[:, :AGE] if task == "age" else logits[:, AGE:]
        known = labels[:, column] >= 0
        right = np.bincount(person, known & (part.argmax(1) == labels[:, column]), persons)
        count = np.bincount(person, known, persons)

        def figures(weights: np.ndarray, right: Any = right, count: Any = count) -> Any:
            return {"accuracy": weights @ right / np.maximum(weights @ count, 1)}

        intervals[task] = estimate_with_intervals(figures, persons)[1]["accuracy"]
    return intervals


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def measure(results: Results, args: Namespace, there: list[str], model: str, size: int) -> None:
    """Times of each framework's variants, which take turns; all of a network are one part."""
    key = f"cost/{model}/{size}"
    if results.has(key):
        return
    started, batch = time.time(), args.cost_batch
    found: dict[str, Figures] = {}
    rounds = {"training": args.rounds, "inference": args.rounds}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in there:
            for label, variant in VARIANTS[name].items():
                if args.platform not in variant.platforms:
                    continue
                if label == "compiled" and args.platform == "cpu" and label not in args.variants:
                    continue
                log(f"{key}: starting {name}, {label}")
                work = Work(
                    model,
                    size,
                    variant.dtype,
                    platform=args.platform,
                    folder=_folder(results, model, size).resolve(),
                    options=variant.options,
                )
                with _environment(variant.environment):
                    worker = stack.enter_context(_worker(name, work, args))
                    begun = time.perf_counter()
                    figures = worker.start()
                    prepared = worker.ask("prepare", "training", batch)
                figures = figures | {"framework": name, "variant": label, "text": variant.text}
                if "error" in prepared:
                    figures["error"] = prepared["error"]
                else:
                    figures["first_step_seconds"] = time.perf_counter() - begun
                    figures["training_peak_bytes"] = prepared["peak_bytes"]
                    workers[f"{name}, {label}"] = worker
                found[f"{name}, {label}"] = figures
        for stage, count in rounds.items():
            _take_turns(workers, found, stage, batch, count, args.seconds)
    about = {"model": model, "size": size, "batch_size": batch, "platform": args.platform}
    about |= {"rounds": args.rounds, "seconds": args.seconds}
    failed = not any("training" in figures for figures in found.values())
    error = {"error": "no framework has run"} if failed else {}
    results.add(key, about, {"variants": found} | error, started)


def _take_turns(
    workers: dict[str, Worker],
    found: dict[str, Figures],
    stage: str,
    batch: int,
    rounds: int,
    seconds: float,
) -> None:
    if stage == "inference":
        for name, worker in workers.items():
            worker.ask("release")
            prepared = worker.ask("prepare", stage, batch)
            if "error" in prepared:
                found[name]["error"] = prepared["error"]
    able = [name for name in workers if "error" not in found[name]]
    for number in range(rounds):
        log(f"{stage}: round {number + 1} of {rounds}")
        for name in able[number % len(able) :] + able[: number % len(able)] if able else []:
            times = workers[name].ask("measure", stage, seconds)
            if isinstance(times, dict):
                found[name]["error"] = times["error"]
                continue
            found[name].setdefault(stage, []).append(batch / float(np.median(times)))


if __name__ == "__main__":
    with one_line_errors():
        main()
