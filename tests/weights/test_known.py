"""The table of known weights agrees with the sources of the frameworks, where installed."""

import ast
import base64
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from agenet.errors import UserError
from agenet.models import create_model
from agenet.weights.cache import find_file
from agenet.weights.known import KNOWN, KnownWeights, find_init, find_known
from agenet.weights.spec import SOURCES, WeightsSpec

# Networks of agenet's own, by the names that torchvision and timm give them.
OURS = re.compile(
    r"resnet(18|34|50|101|152)|(tf_)?efficientnet_(b[0-7]|lite[0-4])|tf_efficientnetv2_b[0-3]"
)


def of(source: str) -> list[KnownWeights]:
    return [entry for entry in KNOWN if entry.source == source]


def source_file(package: str, path: str) -> str:
    """Reads a file of an installed package without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return (Path(spec.submodule_search_locations[0]) / path).read_text()


def test_table_is_consistent() -> None:
    assert len({entry.name for entry in KNOWN}) == len(KNOWN)
    assert len({(entry.source, entry.file_name) for entry in KNOWN}) == len(KNOWN)
    for entry in KNOWN:
        assert entry.name.startswith(f"{entry.source}/") and entry.source in SOURCES
        assert entry.url.startswith("https://") or (not entry.url and entry.package)
        lengths = {"sha256": (8, 64), "md5": (32,)}[entry.hash.algorithm]
        assert re.fullmatch("[0-9a-f]+", entry.hash.digest) and len(entry.hash.digest) in lengths
        assert WeightsSpec.from_json(entry.spec.to_json()) == entry.spec
        create_model(entry.model, entry.classes, flavour=entry.flavour)


def test_defaults() -> None:
    assert find_known("resnet50").name == "torchvision/resnet50.imagenet1k_v2"
    assert find_known("resnet50", "keras").name == "keras/resnet50.imagenet"
    assert find_known("efficientnet_b0", "tensorflow").name == "keras/efficientnet_b0.imagenet"
    assert find_known("efficientnet_lite0").name == "lite/efficientnet_lite0.imagenet"
    assert find_known("efficientnet_lite4").name == "timm/tf_efficientnet_lite4.in1k"
    assert find_known("efficientnet_v2_b0").name == "keras/efficientnet_v2_b0.imagenet"
    assert find_known(name="caffe/levi_hassner.gender").classes == {"gender": 2}
    with pytest.raises(UserError, match="of the flavour report; there are caffe/levi_hassner"):
        find_known("levi_hassner", "report")
    with pytest.raises(UserError, match="no weights known for vgg16; there are none"):
        find_known("vgg16")
    with pytest.raises(UserError, match="there are timm/efficientnet_b0"):
        find_known(name="timm/efficientnet_b0.ra")


def test_torchvision_agrees() -> None:
    text = source_file("torchvision", "models/resnet.py")
    text += source_file("torchvision", "models/efficientnet.py")
    enums = dict(re.findall(r'url="(\S+)",\s+transforms=partial\((.*?)\),\n', text, re.DOTALL))
    for entry in of("torchvision"):
        options = enums[entry.url]
        size = int(re.findall(r"crop_size=(\d+)", options)[0])
        resized = int((re.findall(r"resize_size=(\d+)", options) or [256])[0])
        assert (entry.input.size, entry.input.crop_fraction) == (size, size / resized)
        assert ("BICUBIC" in options) == (entry.input.interpolation == "bicubic")
    stems = {url: re.split("_rwightman|_lukemelas|-", Path(url).name)[0] for url in enums}
    published = {url for url, stem in stems.items() if OURS.fullmatch(stem)}
    assert published == {entry.url for entry in of("torchvision")}
    for model in {entry.model for entry in of("torchvision")}:
        of_model = text[re.search(f"class {model}_weights", text, re.IGNORECASE).start() :]  # type: ignore[union-attr]
        default = re.findall(r"DEFAULT = (\w+)", of_model)[0]
        assert find_known(model).name == f"torchvision/{model}.{default.lower()}"


def test_timm_agrees() -> None:
    text = source_file("timm", "models/efficientnet.py")
    for entry in of("timm"):
        start = text.index(f"'{entry.name.removeprefix('timm/')}': _cfg(")
        options = text[start : text.index("_cfg(", start + len(entry.name) + 10)]
        release = "effv2-weights" if "v2" in entry.model else "weights"
        assert entry.url.endswith(f"/v0.1-{release}/{entry.file_name}")
        assert f"/v0.1-{release}/{entry.file_name}'" in options
        assert entry.input.size == int((re.findall(r" input_size=\(3, (\d+)", options) or [224])[0])
        crop = (re.findall(r" crop_pct=([\d.]+)", options) or [0.875])[0]
        assert entry.input.crop_fraction == float(crop)
        inception = "INCEPTION" in options or "mean=(0.5" in options
        assert (entry.input.mean == (127.5,) * 3) == inception
        assert ("'bilinear'" in options) == (entry.input.interpolation == "bilinear")
    # The table contains every file that has an address, and with it a hash.
    configs = re.findall(r"'(\w+)\.(\w+)': _cfg\(\s*url='(https[^']+)'", text)
    published = {Path(url).name for model, _, url in configs if OURS.fullmatch(model)}
    assert published == {entry.file_name for entry in of("timm")}


def test_keras_agrees() -> None:
    published, listed = 0, 0
    for model in ("resnet", "efficientnet", "efficientnet_v2"):
        tree = ast.parse(source_file("keras", f"src/applications/{model}.py"))
        values = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if "WEIGHTS" in node.targets[0].id
        }
        networks = [key for key in values["WEIGHTS_HASHES"] if re.fullmatch(r"b\d|resnet\d+", key)]
        published += 2 * len(networks)
        for entry in of("keras"):
            family, _, key = entry.model.rpartition("_")
            if (family or "resnet") == model:
                digest = values["WEIGHTS_HASHES"][key]["notop" in entry.name]
                assert entry.hash.digest == digest
                assert entry.url == values["BASE_WEIGHTS_PATH"] + entry.file_name
                assert bool(entry.classes) != ("notop" in entry.file_name)
                listed += 1
    assert published == listed == len(of("keras"))


@pytest.mark.parametrize("entry", [e for e in KNOWN if e.package], ids=lambda entry: entry.name)
def test_packages_agree(entry: KnownWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.package is not None
    try:
        files = importlib.metadata.files(entry.package.distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{entry.package.distribution} is not installed")
    (stated,) = [file.hash for file in files or () if str(file) == entry.package.path]
    assert stated is not None
    assert base64.urlsafe_b64decode(stated.value + "=").hex() == entry.hash.digest
    monkeypatch.setenv("AGENET_OFFLINE", "1")
    assert find_file(entry).name == entry.file_name


def test_find_init(tmp_path: Path) -> None:
    found = find_init("imagenet", "resnet50")
    assert isinstance(found, KnownWeights)
    assert found.name == "torchvision/resnet50.imagenet1k_v2"
    found = find_init("timm/tf_efficientnet_b0.ns_jft_in1k", "efficientnet_b0")
    assert isinstance(found, KnownWeights)
    assert found.flavour == "tensorflow"
    file = tmp_path / "mine.safetensors"
    file.touch()
    assert find_init(str(file), "resnet50") == file


@pytest.mark.parametrize(
    ("init", "model", "flavour", "message"),
    [
        ("imagnet", "resnet50", "", "did you mean imagenet?"),
        (
            "torchvision/resnet50.imagenet_v1",
            "resnet50",
            "",
            "mean torchvision/resnet50.imagenet1k",
        ),
        ("imagenet", "levi_hassner", "", "no ImageNet weights; there are caffe/levi_hassner.age"),
        ("imagenet", "resnet18", "keras", "resnet18 of the flavour keras; there are torchvision"),
        ("keras/resnet50.imagenet", "resnet18", "", "no weights called 'keras/resnet50.imagenet'"),
        ("keras/resnet50.imagenet", "resnet50", "torchvision", "of the flavour torchvision"),
        ("runs/none", "resnet50", "", "nor a file"),
    ],
)
def test_find_init_mistakes(init: str, model: str, flavour: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_init(init, model, flavour)


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(KNOWN[0].spec.to_json()) | fields)


INPUT = json.loads(KNOWN[0].spec.to_json())["input"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
        (" " * 20_000_000, "longer than"),
        ("[]", "must have the fields model, .* not list"),
        ('{"model": "resnet50"}', "must have the fields"),
        (changed(surplus=1), "must have the fields .* surplus"),
        (changed(model=5), "model must be printable text"),
        (changed(origin="\x1b[2J"), "origin must be printable text"),
        (changed(licence="x" * 2000), "licence must be printable text"),
        (changed(source="pickle"), "source must be one of"),
        (changed(sha256="f" * 63), "sha256 must be 64 hexadecimal"),
        (changed(classes=[8]), "classes must be tasks"),
        (changed(trained_on=["adience"]), "trained_on must be data sets with"),
        (changed(trained_on={"adience": "AAAA"}), "trained_on.adience must be base64 of 64-bit"),
        (changed(trained_on={"adience": 7}), "trained_on.adience must be base64 of 64-bit"),
        (changed(classes={"age": True}), "classes.age must be an integer from 1"),
        (changed(classes={"age": 10**9}), "classes.age must be an integer from 1 to"),
        (changed(input=None), "input must have the fields"),
        (changed(input=INPUT | {"size": 0}), "input.size must be an integer from 1"),
        (changed(input=INPUT | {"mean": [1, 2]}), "input.mean must be three numbers"),
        (changed(input=INPUT | {"std": [1, 0, 1]}), "input.std must be from 0.001 to"),
        (changed(input=INPUT | {"std": [1, float("nan"), 1]}), "input.std must be from"),
        (changed(input=INPUT | {"mean": ["1", 1, 1]}), "input.mean must be a number"),
        (changed(input=INPUT | {"crop_fraction": 1.5}), "crop_fraction must be from"),
        (changed(input=INPUT | {"interpolation": ["x"]}), "interpolation must be one of"),
    ],
)  # fmt: skip
def test_hostile_specification(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        WeightsSpec.from_json(text)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
