"""The model card of a run: a header that the hub reads, then data, training, metrics and limits."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agenet.data.records import extra_names, name_tested
from agenet.evaluation.summary import MAIN_METRICS
from agenet.weights.hub import HubAddress
from agenet.weights.spec import WeightsSpec

# Identifiers of the hub; other licences are "other", with a name.
_LICENCES = (
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "mit",
)

_LIMITS = """\
## Intended use and limitations

Estimates apparent age and apparent gender of faces in images, for research and demonstrations. \
Gender means what annotators perceived in an image, in two classes; it says nothing about how a \
person identifies. Age means how old a person looks. Errors differ between groups of people, and \
groups without a label in the data may fare worse without anyone noticing. Not for decisions about \
a person: neither admission, nor sale, nor service, nor surveillance.
"""


def write_card(
    address: HubAddress, spec: WeightsSpec, report: Mapping[str, Any], licence: str
) -> str:
    """The text of a card.

    Args:
        address: of the repository.
        spec: of the weights.
        report: of the run, the content of its report.json.
        licence: of the weights, such as "CC BY 4.0"; empty if it is not stated.
    """
    tasks = report["evaluation"]["tasks"]
    title = address.repository.partition("/")[2]
    data = name_tested(report["dataset"]["name"])
    lines = [
        "---",
        _header(title, spec, report, licence),
        "---",
        f"# {title}",
        "",
        f"{spec.model} that predicts {' and '.join(spec.heads)} from images of faces, trained with "
        "agenet.",
        "",
        "```python",
        "from agenet import Predictor",
        "",
        f'predictor = Predictor.load("{HubAddress(address.repository)}")',
        "faces = predictor.predict_faces(image)  # RGB uint8 [H, W, 3]",
        "```",
        "",
        f"`model.onnx` is the same network for other runtimes: images uint8 [N, {spec.stored_size},"
        f" {spec.stored_size}, 3], RGB, one face each; its description says how to crop them.",
        "",
        _LIMITS,
        "## Data",
        "",
        *_data(report),
        "",
        "## Training",
        "",
        *_training(spec, report),
        "",
        "## Metrics",
        "",
        f"On the test set of {data}, {report['evaluation'].get('views', 1)} view(s) of each image, "
        "from one run.",
        "",
        *_metrics(tasks),
        "",
        "## Licence",
        "",
        f"{licence or 'Not stated: ask who published these weights.'} The terms of the data and of "
        "the initial weights apply, too.",
        "",
    ]
    return "\n".join(lines)


def _header(title: str, spec: WeightsSpec, report: Mapping[str, Any], licence: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    known = slug in _LICENCES
    name = report["dataset"]["name"]
    data = [_folder(name), *(_folder(extra) for extra in extra_names(name))]
    results = [
        EvalResult(
            task_type="image-classification",
            task_name=f"{task} of faces",
            dataset_type=data[0],
            dataset_name=name_tested(name),
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{task} {metric}",
            metric_value=round(float(metrics[metric]), 5),
        )
        for task, metrics in report["evaluation"]["tasks"].items()
        for metric in ("accuracy", "one_off", "mae")
        if metrics["count"] and isinstance(metrics.get(metric), int | float)
    ]
    header = ModelCardData(
        license=slug if known else "other",
        license_name=None if known else (slug or "not-stated"),
        library_name="agenet",
        pipeline_tag="image-classification",
        datasets=list(dict.fromkeys(data)),
        metrics=sorted({result.metric_type for result in results} & {"accuracy", "mae"}),
        tags=["agenet", "faces", "onnx", "safetensors", spec.model]
        + [{"age": "age-estimation", "gender": "gender-classification"}[t] for t in spec.heads],
        model_name=title,
        eval_results=results or None,
    )
    text: str = header.to_yaml()
    return text.rstrip()


def _folder(name: str) -> str:
    """The data set of "fairface/partial/1.0.0"."""
    return name.partition("/")[0]


def _data(report: Mapping[str, Any]) -> list[str]:
    dataset = report["dataset"]
    lines = [f"{dataset['name']}, {dataset['labels']} labels, protocol {dataset['protocol']}."]
    if dataset.get("notice"):
        lines.append(f"NOTE: {dataset['notice']}")
    lines += ["", "| split | images | subjects |", "| --- | ---: | ---: |"]
    for split, counts in dataset.get("counts", {}).items():
        lines.append(f"| {split} | {counts['faces']:,} | {counts['subjects']:,} |")
    return lines


def _training(spec: WeightsSpec, report: Mapping[str, Any]) -> Sequence[str]:
    training, config = report["training"], report["config"]
    return [
        f"- {spec.origin}",
        f"- {config['duration']}, batches of {config['batch_size']}, "
        f"{config['optimizer']['name']}, learning rate {config['schedule']['learning_rate']:g} "
        f"({config['schedule']['name']})",
        f"- the state of step {training['best_step']} of {training['steps']}",
        f"- input: {spec.input.size} x {spec.input.size} pixels of {spec.stored_size} x "
        f"{spec.stored_size}",
    ]


def _metrics(tasks: Mapping[str, Any]) -> list[str]:
    lines = ["| task | images | metric | value |", "| --- | ---: | --- | ---: |"]
    for task, metrics in tasks.items():
        for name, (heading, factor, digits) in MAIN_METRICS.items():
            value = metrics.get(name)
            if metrics["count"] and isinstance(value, int | float):
                cells = [task, f"{metrics['count']:,}", heading, f"{factor * value:.{digits}f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return lines
