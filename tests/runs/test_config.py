"""The typed configuration: every field is checked, and a run reads every field."""

import ast
import dataclasses
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from agenet.data.config import Augmentation
from agenet.data.records import Records
from agenet.errors import UserError
from agenet.runs import launch
from agenet.runs.config import RunConfig, field_names, parse_config, to_dict
from agenet.runs.identity import ADDED_FIELDS, find_differences
from configs import default
from tests.conftest import ROOT
from tests.tiny import tiny_config, use_records


def sections(config: Any, prefix: str = "") -> Iterator[tuple[type, str]]:
    """The class of a config and those of its parts, with the prefix of their fields' names."""
    yield type(config), prefix
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from sections(value, f"{prefix}{field.name}.")


@contextmanager
def recorded_reads(config: RunConfig) -> Iterator[set[str]]:
    """Collects the dotted names of the fields that are read one by one.

    What looks at all fields at once, to print, copy, compare or save a config, does not count.
    """
    read: set[str] = set()
    whole = {dataclasses.__file__, "<string>"}  # Methods that dataclasses generates have no file.
    with pytest.MonkeyPatch.context() as patch:
        for section, prefix in list(sections(config)):
            names = {field.name for field in dataclasses.fields(section)}

            def watched(self: Any, name: str, names: set[str] = names, prefix: str = prefix) -> Any:
                if name in names and sys._getframe(1).f_code.co_filename not in whole:
                    read.add(prefix + name)
                return object.__getattribute__(self, name)

            patch.setattr(section, "__getattribute__", watched, raising=False)
        yield read


def test_reads_are_recorded() -> None:
    config = parse_config(default.get_config().to_dict())
    with recorded_reads(config) as read:
        to_dict(config), str(config), hash(config), dataclasses.replace(config, seed=1) == config
        assert not read
        assert config.seed == config.dataset.test_fold == 0
    assert read == {"seed", "dataset", "dataset.test_fold"}


def test_every_field_is_read(
    make_records: Callable[..., Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_if_asked = launch.prepare_if_asked
    use_records(make_records(), monkeypatch.setattr)
    monkeypatch.setattr(launch, "prepare_if_asked", prepare_if_asked)
    monkeypatch.setattr(launch, "find_prepared", lambda *args: tmp_path)
    runs: tuple[dict[str, Any], ...] = (
        {"optimizer__name": "adam", "dataset__protocol": "random"}
        | {"augment__rotate": 10.0, "augment__brightness": 0.1},
        {"optimizer__name": "sgd", "schedule__name": "piecewise", "dataset__prepare": True}
        | {"distill__teacher": str(tmp_path / "0"), "dataset__protocol": "random"}
        | {"augment__randaugment": 1, "augment__erase": 0.5},
        {"init": str(tmp_path / "1"), "freeze": "backbone", "dataset__protocol": "random"}
        | {"schedule__name": "polynomial"},
    )
    common: dict[str, Any] = {"schedule__boundaries": ("1 steps",), "schedule__scales": (1.0, 0.1)}
    read: set[str] = set()
    for number, fields in enumerate(runs):
        config = tiny_config(duration="2 steps", **common, **fields)
        with recorded_reads(config) as found:
            launch.launch(config, tmp_path / str(number), "command")
        read |= found
    assert set(field_names()) - read == set()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_shipped_configs_are_right(path: Path) -> None:
    config = runpy.run_path(str(path))["get_config"]()
    fields = flatten_dict(config.to_dict(), sep=".")
    known = flatten_dict(default.get_config().to_dict(), sep=".")
    assert sorted(fields) == sorted(known) == sorted(field_names())
    assert {name: type(value) for name, value in fields.items()} == {
        name: type(value) for name, value in known.items()
    }
    assert to_dict(parse_config(config.to_dict())) == config.to_dict()


def test_saved_configs_come_back() -> None:
    config = parse_config(default.get_config().to_dict())
    saved = json.loads(json.dumps(to_dict(config)))
    assert parse_config(saved) == config
    # One that an earlier version saved.
    flat = flatten_dict(saved, sep=".")
    earlier = {name: value for name, value in flat.items() if name not in ADDED_FIELDS}
    assert len(flat) - len(earlier) == len(ADDED_FIELDS)
    assert parse_config(unflatten_dict(earlier, sep=".")) == config


def test_trackers_take_the_place_of_tensorboard() -> None:
    saved = to_dict(parse_config(default.get_config().to_dict()))
    del saved["trackers"]
    for on, trackers in ((True, ("tensorboard",)), (False, ())):
        assert parse_config(saved | {"tensorboard": on}).trackers == trackers
        now = {"config": saved | {"trackers": trackers}}
        earlier = {"config": saved | {"tensorboard": on}}
        assert find_differences(earlier, now, may_differ=()) == []
    # As flags give them.
    for given, trackers in (
        ("mlflow,wandb", ("mlflow", "wandb")),
        ("", ()),
        (" wandb ", ("wandb",)),
    ):
        assert parse_config(saved | {"trackers": (given,)}).trackers == trackers


def test_default_augmentation() -> None:
    assert parse_config(default.get_config().to_dict()).augment == Augmentation()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sed", 1, "unknown config field sed: did you mean seed?"),
        ("dataset.nme", "x", "unknown config field dataset.nme: did you mean dataset.name?"),
        (
            "dataset.labels",
            "all",
            'dataset.labels "all" is not known: use "official" or "extended"',
        ),
        (
            "dataset.protocol",
            "official",
            'dataset.protocol "official" is not known: use "subject" or "random"',
        ),
        ("dataset.validation_fraction", 0.0, "dataset.validation_fraction 0 must be greater than"),
        ("seed", -1, "seed -1 must be greater than or equal to 0"),
        ("tasks", "height", 'tasks "height" must be "age", "gender" or "age,gender"'),
        ("batch_size", 0, "batch_size 0 must be greater than or equal to 1"),
        ("accumulate", 0, "accumulate 0 must be greater than or equal to 1"),
        ("batch_size", "many", 'batch_size "many" must be a valid integer'),
        ("trackers", ("mlflw",), 'trackers "mlflw" is not known: use "tensorboard", "mlflow" or'),
        ("dataset.validation_fraction", 1.0, "dataset.validation_fraction 1 must be less than 1"),
        ("label_smoothing", 1.0, "label_smoothing 1 must be less than 1"),
        ("ema", -0.1, "ema -0.1 must be greater than or equal to 0"),
        ("class_weights", "even", 'class_weights "even" is not known: use "none" or "balanced"'),
        ("test_views", 3, "test_views 3 is not known: use 1, 2 or 4"),
        ("model.name", "levi_hasner", "did you mean levi_hassner?"),
        ("model.dtype", "float16", 'model.dtype "float16" is not known: use "float32" or "bfloat'),
        ("heads.age", "years", 'heads.age "years" is not known: use "groups", "distribution" or'),
        ("input.placement", "disk", 'input.placement "disk" is not known: use "auto", "device"'),
        ("input.mean", (1.0, 2.0), "input.mean (1.0, 2.0) must be three numbers, for R, G, B"),
        ("input.mean", ("x",), 'input.mean "x" must be a valid number'),
        ("input.std", (1.0, 1.0, 0.0), "input.std (1.0, 1.0, 0.0) must be positive"),
        ("augment.crop", "middle", 'augment.crop "middle" is not known: use "random" or "center"'),
        ("augment.scale", 1.0, "augment.scale 1 must be less than or equal to 0.99"),
        ("augment.rotate", -1, "augment.rotate -1 must be greater than or equal to 0"),
        ("augment.flip", 1.5, "augment.flip 1.5 must be less than or equal to 1"),
        ("augment.shift", float("nan"), "augment.shift nan must be"),
        ("augment.mixup", -1.0, "augment.mixup -1 must be greater than or equal to 0"),
        ("augment.cutmix", -1.0, "augment.cutmix -1 must be greater than or equal to 0"),
        ("augment.randaugment", 11, "augment.randaugment 11 must be less than or equal to 10"),
        ("augment.randaugment_magnitude", 31.0, "randaugment_magnitude 31 must be less than or"),
        ("augment.erase", 2.0, "augment.erase 2 must be less than or equal to 1"),
        ("augment.erase_area", 0.0, "augment.erase_area 0 must be greater than 0"),
        (
            "dataset.sampling",
            "balanced",
            'dataset.sampling "balanced" is not known: use "uniform", "class_balanced" or "age_bal',
        ),
        ("distill.weight", 0.0, "distill.weight 0 must be greater than 0"),
        ("distill.temperature", 0.0, "distill.temperature 0 must be greater than 0"),
        (
            "optimizer.name",
            "adagrad",
            'optimizer.name "adagrad" is not known: use "adam", "adamw", "lion", "lamb", "sgd", ',
        ),
        ("optimizer.layer_decay", 1.5, "optimizer.layer_decay 1.5 must be less than or equal to 1"),
        ("schedule.power", 0.0, "schedule.power 0 must be greater than 0"),
        ("schedule.final_scale", 2.0, "schedule.final_scale 2 must be less than or equal to 1"),
        ("optimizer.clip_norm", -1.0, "optimizer.clip_norm -1 must be greater than or equal to 0"),
        ("optimizer.weight_decay", float("nan"), "optimizer.weight_decay nan must be"),
        ("optimizer.backbone_scale", float("inf"), "optimizer.backbone_scale inf must be"),
        ("schedule.name", "linear", 'schedule.name "linear" is not known: use "constant", "piec'),
        ("schedule.learning_rate", 0.0, "schedule.learning_rate 0 must be greater than 0"),
        ("schedule.learning_rate", float("nan"), "schedule.learning_rate nan must be"),
        ("feature_cache", "on", 'feature_cache "on" is not known: use "auto" or "off"'),
        ("feature_cache_bytes", -1, "feature_cache_bytes -1 must be greater than or equal to 0"),
        ("best", "accuracy", 'best "accuracy" is not measured: use "last" or one of validation/l'),
        ("freeze", "backbone", 'freeze "backbone" of random weights: give --config.init, too'),
    ],
)
def test_mistakes_are_one_line(field: str, value: Any, message: str) -> None:
    fields = flatten_dict(default.get_config().to_dict(), sep=".") | {field: value}
    with pytest.raises(UserError) as caught:
        parse_config(unflatten_dict(fields, sep="."))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_fields() -> None:
    fields = default.get_config().to_dict()
    del fields["dataset"]["name"]
    with pytest.raises(UserError, match=r"the config lacks the field dataset\.name"):
        parse_config(fields)


def test_only_main_knows_config_dict() -> None:
    importing = set()
    for path in (ROOT / "agenet").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "ml_collections":
                importing.add(path.name)
            if isinstance(node, ast.Import | ast.Name):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.id]
                if {"ConfigDict", "ml_collections"} & set(names):
                    importing.add(path.name)
    assert importing == {"main.py"}


def test_config_files_return_a_config_dict() -> None:
    assert isinstance(default.get_config(), ConfigDict)
