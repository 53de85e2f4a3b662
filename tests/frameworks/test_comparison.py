"""The comparison of frameworks: what is measured, what is concluded, and the pages."""

import copy
import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from agenet.cli.app import run_command
from agenet.cli.compare import command as compare_command
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.frameworks.comparison import compare, data, engine, page, parts
from agenet.frameworks.comparison.analysis import (
    ROUNDING,
    deviations,
    five_epochs,
    permutation_p,
)
from agenet.frameworks.comparison.difference import compare as compare_states
from agenet.frameworks.comparison.engine import OUTPUTS, Work, flavour_of, write_faces
from agenet.frameworks.comparison.engines import ENGINES, not_installed
from agenet.frameworks.comparison.findings import findings
from agenet.frameworks.comparison.results import Results, read_results
from agenet.models import create_model
from agenet.training.state import create_variables
from tests.random_variables import random_variables

SIZE = 35
STAGES = ("training", "inference")


def test_permutation_test() -> None:
    apart = np.array([[1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2]])
    # All orders of three frameworks put the same distances between them: 6 of 6 ** 3.
    assert permutation_p(apart) == (pytest.approx(6 / 216), pytest.approx(6 / 216))
    assert permutation_p(np.ones((3, 3)))[0] == 1
    rng = np.random.default_rng(0)
    # Of pure chance p is uniform: below a half as often as above, and drawn orders agree.
    found = [permutation_p(rng.normal(size=(3, 3)))[0] for _ in range(200)]
    assert 0.4 < np.mean(np.array(found) <= 0.5) < 0.6
    assert permutation_p(np.repeat(apart, 4, axis=1))[0] < 1e-4


def test_difference() -> None:
    b = {"logits": np.array([[4.0, -2.0]]), "gradients:params/k": np.array([3.0, 4.0])}
    b |= {"1:params/k": np.array([1.0, 0.0]), "1:batch_stats/m": np.array([2.0])}
    a = copy.deepcopy(b)
    a["logits"][0, 0] += 0.4
    a["gradients:params/k"][1] += 0.5
    a["1:params/k"][1] += 0.1
    a["1:batch_stats/m"] = np.array([np.nan])
    start = {"params/k": np.array([0.5, 0.0])}
    about = [{"loss": loss, "steps": [1]} for loss in (2.2, 2.0)]
    found = compare_states(a, b, start, *about)
    assert found["logits"] == pytest.approx(0.1) and found["loss"] == pytest.approx(0.1)
    assert found["gradients"] == pytest.approx({"largest": 0.125, "norm": 0.1})
    step = found["steps"]["1"]
    assert (step["norm"], step["way"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert step["statistics"] == 1e9  # NaN counts as the largest possible difference.


def row(kind: str, a: str, b: str, value: float, late: float) -> dict[str, Any]:
    both = {"largest": value, "norm": value}
    steps = {"1": {**both, "way": value}, "100": {"largest": late, "norm": late, "way": late}}
    figures = {"logits": value, "loss": value, "gradients": both, "steps": steps}
    return {"kind": kind, "a": a, "b": b, "dtype": "float32", **figures}


def content(
    late: float = 1e-5, better: float = 0.0, seeds: int = 7, steady: bool = False
) -> dict[str, Any]:
    """Results of two frameworks; a third is missing, one part of them has failed."""
    common = {"took": 2.0, "finished": "2026-01-02 03:04:05", "load": 0.5, "environment": {}}
    network = {"model": "levi_hassner", "size": 227}
    rows = [row("rounding", name, name, 1e-6, 1e-5) for name in ("jax", "torch")]
    rows += [row("exact", "jax", "torch", 1e-6, 1e-5), row("pair", "jax", "torch", 1e-6, late)]
    found: dict[str, Any] = {
        "differences/levi_hassner/227/sgd": {**network, "optimizer": "sgd", "rows": rows},
        "agreement/levi_hassner/227/adam/torch/float32": {"framework": "torch", "error": "<no>"},
    }
    for name, gain in (("jax", 0.0), ("torch", better)):
        for seed in range(seeds):
            noise = 0.01 * ((7 * seed + len(name) * (not steady)) % 5)
            last = {f"{task}_accuracy": 0.5 + gain + noise for task in ("age", "gender")}
            last |= {"age_loss": 1.5, "gender_loss": 0.6, "training_loss": 2.0}
            found[f"results/levi_hassner/227/plain/{name}/{seed}"] = {
                **network,
                "framework": name,
                "regime": "plain",
                "seed": seed,
                "epochs": [last],
                "intervals": {"age": [0.4, 0.6], "gender": None},
            }
    variants = {}
    for name, speed in (("jax", 100.0), ("torch", 50.0)):
        variants[f"{name}, default"] = {
            **{"framework": name, "variant": "default", "text": "as it is"},
            **{"first_step_seconds": 3.0, "training_peak_bytes": 2**30},
            **{"training": [speed, 1.1 * speed, 0.9 * speed], "inference": [4 * speed]},
        }
    broken = {"framework": "torch", "variant": "compiled", "text": "", "error": "no compiler"}
    variants["torch, compiled"] = broken
    found["cost/levi_hassner/227"] = {**network, "batch_size": 8, "variants": variants}
    machine = {"processor": "a processor", "cores": 2, "memory_bytes": 2**34, "system": "Linux"}
    return {
        "settings": {"epochs": 1, "results_batch": 32, "results": {"levi_hassner": 227}},
        "machine": machine | {"python": "3.11", "agenet": "0"},
        "data": {
            **{"name": "adience/faces/1.1.0", "fingerprint": "x", "test_fold": 0, "notice": ""},
            **{"split": "over persons", "split_seed": 0, "all_train_faces": 1000},
            **{"all_test_faces": 100, "train_faces": 1000, "test_faces": 100, "test_persons": 9},
            "initial": {"levi_hassner": "random"},
            "largest_class": {"age": 0.3, "gender": 0.5},
        },
        "frameworks": {"jax": {"missing": ""}, "torch": {"missing": ""}, "keras": {"missing": "k"}},
        "parts": {key: common | part for key, part in found.items()},
    }


def test_findings_follow_the_results() -> None:
    same, equal, cost = findings(content())
    assert "compute the same logits (Levi-Hassner)" in same.text and "1e-06" in same.evidence
    assert equal.text.startswith("No difference in accuracy between frameworks was found")
    # 22 and 2 points above always predicting the largest class.
    assert "have learnt little of gender," in equal.text
    assert "age 30.0, means 51.7–51.9" in equal.evidence
    assert "JAX, 2.0 times as fast as PyTorch" in cost.text
    # 1,000 faces in five epochs at 100 images per second; the report took 6,914 s.
    assert "50.0 s" in cost.evidence and "1 h 55 min" in cost.evidence

    late, better, _ = findings(content(late=1e-2, better=0.2))
    assert "Not the same: 100 steps of SGD" in late.text
    assert "1,000 times what rounding explains" in late.text
    assert "PyTorch is 19.9 points" in better.text and "That is more than the 1." in better.text
    # A small difference that every seed shows is consistent, but not large.
    little = findings(content(better=0.002, steady=True))[1].text
    assert "changes the accuracy consistently" in little and "That is no more than" in little
    few = findings(content(better=0.2, seeds=2))[1]
    assert "so few seeds could not show one" in few.text
    nothing = findings({"parts": {}, "machine": {"cores": 2}, "data": {}})
    assert all("not known" in finding.text for finding in nothing)
    busy = content()
    busy["parts"]["cost/levi_hassner/227"]["load"] = 9.0
    assert "busy" in findings(busy)[2].text
    assert len(deviations(content())) == 4


def test_agreement_can_fail() -> None:
    """An untrained network is detected, or the comparison is not conclusive."""
    for rounding, conclusive in ((1e-4, True), (0.04, True), (0.06, True), (0.2, False)):
        results = content(late=1.0)  # the whole way
        for found in results["parts"]["differences/levi_hassner/227/sgd"]["rows"]:
            if found["kind"] == "rounding":
                found["steps"]["100"]["way"] = rounding
        (late,) = (e for e in deviations(results) if e.what == "100 steps")
        assert late.is_conclusive == conclusive == (late.ratio > ROUNDING)
        finding = findings(results)[0]
        assert ("Not the same: 100 steps of SGD" in finding.text) == conclusive
        assert ("Not conclusive" in finding.evidence) != conclusive
    # Steps so short that rounding of the parameters is as large.
    short = content()
    for found in short["parts"]["differences/levi_hassner/227/sgd"]["rows"]:
        found["steps"]["1"] |= {"way": 0.5, "norm": 1e-8}
    assert not next(e for e in deviations(short) if e.what == "1 step").is_conclusive


def test_evidence_is_of_the_largest_ratio() -> None:
    """Not of the largest difference, which rounding may cause in another network."""
    results = content(late=1e-2)
    other = copy.deepcopy(results["parts"]["differences/levi_hassner/227/sgd"])
    for found in other["rows"]:
        found["steps"]["100"]["way"] = 0.02
    results["parts"]["differences/resnet50/224/sgd"] = other | {"model": "resnet50"}
    evidence = findings(results)[0].evidence
    assert "100 steps of SGD 1e-02, rounding alone 1e-05 (Levi-Hassner, JAX and" in evidence


def test_pages_of_the_cost_alone(tmp_path: Path) -> None:
    results = content()
    del results["data"]
    results["parts"] = {k: v for k, v in results["parts"].items() if k.startswith("cost/")}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = page.write_pages(tmp_path)[1].read_text()
    assert "2.0 times as fast" in text and "Projected, for" not in text


def test_projection_needs_the_input_size_of_the_report() -> None:
    part = {"model": "resnet50", "size": 224}
    assert five_epochs(part, 1000, 1.0, 50.0) == 100
    assert five_epochs(part | {"size": 64}, 1000, 1.0, 50.0) is None
    assert five_epochs({"model": "efficientnet_b0", "size": 224}, 100, 60_000, 100) == 10


def parse(arguments: list[str]) -> Namespace:
    context = compare_command.make_context("compare", arguments)
    return compare.complete(Namespace(**context.params))


def test_pages(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(content()))
    run_command(["compare", f"--out={tmp_path}", "--page"])
    html, text = ((tmp_path / name).read_text() for name in (page.PAGE, page.TEXT))
    for part in (html, text):
        assert "k is not installed" in part  # A missing framework is reported, not an error.
        assert "no compiler" in part and "&lt;no&gt;" in part
        assert "6,914 s" in part and "not documented" in part
        assert "Always the largest class" in part and "of the 2 pairs" in part
    assert "<script" not in html and "://" not in html.replace("http://www.w3.org", "")
    images = {path.name for path in (tmp_path / page.IMAGES).iterdir()}
    assert images == {"agreement.png", "cost.png", "results-levi-hassner-plain.png"}


def test_mistakes(tmp_path: Path) -> None:
    out = f"--out={tmp_path}"
    for options, message in (
        (["--page"], "there is no .*results.json"),
        (["--parts=speed"], "'speed' is not one of agreement, cost"),
        (["--agreement=resnet18:64"], "'resnet18' is not in every framework"),
        (["--cost=resnet50"], "NETWORK:SIZE"),
        (["--seeds=0"], "at least 1"),
        (["--steps=0"], "numbers from 1"),
        (["--init=imagent"], "'imagent' is not one of 'imagenet', 'random'"),
        (["--agreement=efficientnet_banana:64"], "'efficientnet_banana' is not in every framework"),
        (["--train_faces=-5"], "at least 1, or 0 for all"),
        (["--train_faces=20"], "not even one batch: with --results_batch=32"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(["compare", out, *options])
    assert not any(tmp_path.iterdir())
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        run_command(["compare", out, "--page"])
    settings = {"epochs": 2, "seeds": 3}
    (tmp_path / "results.json").unlink()
    Results(tmp_path, settings).save()
    Results(tmp_path, settings | {"seeds": 5})  # More may be added.
    with pytest.raises(UserError, match="--epochs=2, not 3"):
        Results(tmp_path, settings | {"epochs": 3})
    # A later run for one part keeps earlier results.
    few = {"epochs": 2, "seeds": 1, "frameworks": ["torch"]}
    Results(tmp_path, settings | {"frameworks": ["jax"]}).save()
    kept = Results(tmp_path, few).content["settings"]
    assert (kept["seeds"], kept["frameworks"]) == (3, ["jax", "torch"])


class Stub:
    """Replaces the worker process: PyTorch fails, the others write results."""

    asked: list[str] = []
    failing = "torch"

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __enter__(self) -> "Stub":
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> dict[str, Any]:
        return {"error": "RuntimeError: no"} if self.name == self.failing else {"device": "cpu"}

    def ask(self, method: str, initial: Path, file: Path, *_: Any) -> dict[str, Any]:
        if self.name == self.failing:
            return {"error": "RuntimeError: no"}
        self.asked.append(file.name)
        tensors = {"logits": np.ones((1, 2)), "gradients:params/k": np.ones(2)}
        safetensors.numpy.save_file(tensors | {"1:params/k": np.ones(2)}, file)
        return {"loss": 1.0}


def test_a_failing_framework_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "Worker", Stub)
    monkeypatch.setattr(Stub, "asked", [])
    (tmp_path / "data").mkdir()
    start = {"params/k": np.zeros(2)}
    safetensors.numpy.save_file(start, tmp_path / "data" / "levi_hassner-35-seed0.safetensors")
    args = Namespace(platform="cpu", agreement_batch=2, limit=1.0, steps=[1])
    there = ["jax", "torch", "keras"]

    def run() -> dict[str, Any]:
        results = Results(tmp_path, {})
        parts.agree(results, args, there, "levi_hassner", SIZE, "sgd")
        return read_results(tmp_path)["parts"]

    done = run()
    failed = {key for key, part in done.items() if "error" in part}
    assert failed and all("/torch/" in key for key in failed)
    rows = done["differences/levi_hassner/35/sgd"]["rows"]
    assert {(r["kind"], r["a"], r["b"]) for r in rows} == {
        ("rounding", "jax", "jax"),
        ("rounding", "keras", "keras"),
        ("pair", "jax", "keras"),
    }
    assert len(Stub.asked) == 4
    run()  # Existing results are not measured again.
    assert len(Stub.asked) == 4
    assert len([*(tmp_path / "agreement").iterdir()]) == 4
    monkeypatch.setattr(Stub, "failing", "")
    rows = run()["differences/levi_hassner/35/sgd"]["rows"]
    assert sum(row["kind"] == "pair" for row in rows) == 3
    assert not any((tmp_path / "agreement").iterdir())  # The tensors are no longer needed.
    run()
    assert len(Stub.asked) == 7


class Timed(Stub):
    """Replaces the worker process: each step takes a second."""

    def ask(self, method: str, *arguments: Any) -> Any:
        self.asked.append(f"{method} {' '.join(map(str, arguments[:1]))}".strip())
        if self.name == self.failing:
            return {"error": "RuntimeError: no"}
        return {"prepare": {"peak_bytes": 1}, "measure": [1.0], "peak": 2}.get(method)


def test_later_measurements_are_added_to_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "Worker", Timed)
    monkeypatch.setattr(Timed, "asked", [])
    args = Namespace(platform="cpu", cost_batch=8, rounds=1, seconds=1.0, limit=1.0, variants=[])

    def run(*there: str) -> dict[str, Any]:
        parts.measure(Results(tmp_path, {}), args, [*there], "levi_hassner", SIZE)
        found: dict[str, Any] = read_results(tmp_path)["parts"]["cost/levi_hassner/35"]
        return found

    first = run("jax", "torch")
    assert "error" in first["variants"]["torch, default"]
    assert first["variants"]["jax, default"]["training"] == [8.0]
    # Measured after training: before it, PyTorch's Adam has no state yet.
    assert first["variants"]["jax, default"]["training_peak_bytes"] == 2
    assert Timed.asked.index("peak") > Timed.asked.index("measure training")
    large = first["variants"]["jax, large pages"]
    assert "GLIBC_TUNABLES" in large["environment"] and large["machine"]["cores"]
    monkeypatch.setattr(Timed, "failing", "")
    args.variants = ["compiled"]
    later = run("torch")["variants"]
    assert later["jax, default"] == first["variants"]["jax, default"]
    assert later["torch, default"]["training"] and later["torch, compiled"]["training"]
    count = len(Timed.asked)
    assert run("torch")["variants"] == later and len(Timed.asked) == count


class Interrupted(Timed):
    """A program that is killed at the measurement of this number; each one is another rate."""

    failing = ""
    measured: list[str] = []
    last = 0

    def ask(self, method: str, *arguments: Any) -> Any:
        if method != "measure":
            return super().ask(method, *arguments)
        self.measured.append(self.name)
        if len(self.measured) == self.last:
            raise KeyboardInterrupt
        return [1 / len(self.measured)]


@pytest.mark.parametrize("last", range(1, 13))
def test_an_interrupted_cost_goes_on_with_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(parts, "Worker", Interrupted)
    monkeypatch.setattr(Interrupted, "measured", [])
    monkeypatch.setattr(Interrupted, "last", last)
    one = {name: {"default": engine.VARIANTS[name]["default"]} for name in ENGINES}
    monkeypatch.setattr(parts, "VARIANTS", one)
    args = Namespace(platform="cpu", cost_batch=1, rounds=3, seconds=1.0, limit=1.0, variants=[])

    def run() -> None:
        parts.measure(Results(tmp_path, {}), args, ["jax", "torch"], "levi_hassner", SIZE)

    with pytest.raises(KeyboardInterrupt):
        run()
    # What a round has measured when it is interrupted is lost, no round before it.
    saved = (last - 1) // 2 * 2
    if saved:
        kept = read_results(tmp_path)["unfinished"]["cost/levi_hassner/35"]["variants"]
        assert sum(len(of.get(s, [])) for of in kept.values() for s in STAGES) == saved
    del Interrupted.measured[saved:]
    monkeypatch.setattr(Interrupted, "last", 0)
    run()
    assert len(Interrupted.measured) == 12
    content = read_results(tmp_path)
    assert not content["unfinished"]
    variants = content["parts"]["cost/levi_hassner/35"]["variants"]
    rates = [rate for of in variants.values() for stage in STAGES for rate in of[stage]]
    assert sorted(rates) == pytest.approx(range(1, 13))


@pytest.mark.parametrize("other", [{"seconds": 2.0}, {"machine": "another"}])
def test_rounds_that_were_measured_otherwise_are_not_kept(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    results = Results(tmp_path, {})
    results.keep_rounds("cost", {"a": {"training": [1.0], "text": ""}, "b": {"error": "no"}}, 1.0)
    again = Results(tmp_path, {})
    assert again.kept_rounds("cost", 1.0) == {"a": {"training": [1.0]}}
    again.content["unfinished"]["cost"] |= other
    assert again.kept_rounds("cost", 1.0) == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(ENGINES))
def test_another_platform_than_requested_is_an_error(name: str) -> None:
    if missing := not_installed(name):
        pytest.skip(f"{missing} is not installed")
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="runs on the cpu here, not as --platform=gpu"):
        ENGINES[name](Work("levi_hassner", SIZE, platform="gpu"))


def test_data(
    tmp_path: Path,
    make_records: Callable[..., Records],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing weights are reported; the cost needs no data set."""
    monkeypatch.setattr("agenet.data.records.open_records", lambda *_: make_records(size=40))
    monkeypatch.setattr("agenet.weights.cache._installed_file", lambda known: None)
    options = [f"--out={tmp_path}", "--agreement=efficientnet_lite0:35", "--seeds=1"]
    options += ["--train_faces=32", "--test_faces=20"]
    cost = parse([*options, "--parts=cost"])
    results = Results(tmp_path, {})
    data.prepare_data(results, cost)
    assert not any(tmp_path.iterdir()) and "data" not in results.content
    data.prepare_data(results, parse([*options, "--parts=agreement"]))
    assert "efficientnet_lite0 has no pre-trained weights: random (" in capsys.readouterr().err
    labels = np.load(tmp_path / "data" / "efficientnet_lite0-35" / "labels.npy")
    faces = engine.read_faces(tmp_path / "data" / "efficientnet_lite0-35")
    genders = labels[faces.test, 1]
    share = max(np.mean(genders[genders >= 0]), 1 - np.mean(genders[genders >= 0]))
    assert results.content["data"]["largest_class"]["gender"] == pytest.approx(share)


def test_perturbation_is_one_unit_in_the_last_place(tmp_path: Path) -> None:
    prepare(tmp_path, "levi_hassner")
    for dtype, unit in (("float32", 2.0**-23), ("bfloat16", 2.0**-7)):
        framework = ENGINES["jax"](Work("levi_hassner", SIZE, dtype, folder=tmp_path))
        plain, moved = (framework._batch(0, 4, perturbed)[0] for perturbed in (False, True))
        change = np.abs(moved - plain) / np.maximum(np.abs(plain), 1e-3)
        assert unit / 8 < np.median(change) <= unit


def prepare(folder: Path, model: str) -> Path:
    """A few faces of noise, and initial weights."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(-1, 8, 30), rng.integers(-1, 2, 30)], 1).astype(np.int32)
    write_faces(
        folder,
        images=rng.integers(0, 255, (30, SIZE + 5, SIZE + 5, 3), np.uint8),
        labels=labels,
        train=np.arange(20),
        test=np.arange(20, 30),
        mean=np.array([127.0] * 3, np.float32),
        std=np.array([128.0] * 3, np.float32),
    )
    network = create_model(model, {"classes": OUTPUTS}, flavour=flavour_of(model))
    shapes = jax.eval_shape(lambda: create_variables(network, SIZE, 0))
    variables = flatten_dict(random_variables(shapes), sep="/")
    path = folder / "initial.safetensors"
    safetensors.numpy.save_file(variables, path)
    return path


def outcome(folder: Path, name: str, model: str, initial: Path, **options: Any) -> tuple[Any, Any]:
    """What a framework writes after two steps, and its figures."""
    if missing := not_installed(name):
        pytest.skip(f"{missing} is not installed")
    framework = ENGINES[name](Work(model, SIZE, folder=folder, optimizer="sgd", **options))
    out = folder / f"{name}.safetensors"
    figures = framework.agree(initial, out, 4, [1, 2], False) | {"steps": [1, 2]}
    return safetensors.numpy.load_file(out), figures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model", ["levi_hassner", "efficientnet_lite0"])
@pytest.mark.parametrize("name", ["torch", "keras"])
def test_frameworks_compute_the_same(name: str, model: str, tmp_path: Path) -> None:
    initial = prepare(tmp_path, model)
    theirs = outcome(tmp_path, name, model, initial)
    ours = outcome(tmp_path, "jax", model, initial)
    begun = safetensors.numpy.load_file(initial)
    found = compare_states(theirs[0], ours[0], begun, theirs[1], ours[1])
    assert found["logits"] < 1e-5 and found["loss"] < 1e-5
    # Units at the kinks of ReLU6 make the gradients of random weights jump.
    assert found["gradients"]["norm"] < 2e-2 and found["steps"]["1"]["norm"] < 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(ENGINES))
def test_training_and_timing(name: str, tmp_path: Path) -> None:
    """Trains with dropout and augmentation; the same seed gives the same results."""
    initial = prepare(tmp_path, "levi_hassner")
    if missing := not_installed(name):
        pytest.skip(f"{missing} is not installed")
    framework = ENGINES[name](Work("levi_hassner", SIZE, folder=tmp_path, regular=True))
    runs = [framework.train(initial, tmp_path / "out.npy", 4, 1, 0) for _ in range(2)]
    assert np.load(tmp_path / "out.npy").shape == (10, OUTPUTS)
    (epoch,) = runs[0]
    assert set(epoch) == {"training_loss", "age_accuracy", "age_loss"} | {
        "gender_accuracy",
        "gender_loss",
    }
    assert np.isfinite(list(epoch.values())).all()
    assert runs[1][0] == pytest.approx(epoch, rel=1e-4)
    broken = safetensors.numpy.load_file(initial)
    safetensors.numpy.save_file({n: v * np.inf for n, v in broken.items()}, initial)
    with pytest.raises(FloatingPointError, match="training has diverged: its loss in epoch 1 is"):
        framework.train(initial, tmp_path / "out.npy", 4, 1, 0)
    framework.prepare("training", 2)
    assert framework.measure("training", 0.0)[0] > 0


def test_accuracy_and_loss() -> None:
    logits = np.zeros((3, OUTPUTS), np.float32)
    logits[0, 2] = logits[1, 0] = logits[2, 9] = 100
    labels = np.array([[2, -1], [1, 1], [-1, 1]], np.int32)
    figures = engine.test_figures(logits, labels)
    assert figures["age_accuracy"] == 0.5 and figures["gender_accuracy"] == 0.5
    assert figures["age_loss"] == pytest.approx(50)
    assert figures["gender_loss"] == pytest.approx(np.log(2) / 2)
