"""Reads the description of a prepared data set: its splits, features and notice.

The files are TFDS's, but TFDS does not read them: it imports whatever module `features.json` names.
Everything in them may come from a stranger, so it is checked here before use.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from agenet.errors import printable

_MAX_BYTES = 16 << 20  # of each file; TFDS writes a few kB
_TFDS_CLASS = r"tensorflow_datasets\.core\.features(\.\w+)+"
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_SHOWN = 500  # characters of a notice


class RefusedError(ValueError):
    """The description names code that is not part of TFDS."""


_Name = Annotated[str, Field(pattern=r"^\w{1,100}$")]  # becomes a part of a path
_Count = Annotated[int, Field(ge=0, lt=1 << 40)]


class _Split(BaseModel):
    name: _Name
    lengths: list[_Count] = Field([], alias="shardLengths", max_length=99_999)
    size: _Count = Field(0, alias="numBytes")
    files: Literal["", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"] = Field(
        "", alias="filepathTemplate"
    )


class _Info(BaseModel):
    name: _Name
    version: str
    file_format: Literal["array_record"] = Field(alias="fileFormat")
    splits: list[_Split] = []


@dataclass(frozen=True)
class Description:
    """A prepared data set in a folder.

    Attributes:
        features: the names of its features.
        shards: for each split the files and the number of records in each.
        size: of all files in bytes, as stated.
        notice: a caveat about the data; often empty.
        summary: lines about its preparation.
    """

    features: frozenset[str]
    shards: dict[str, list[tuple[Path, int]]]
    size: int
    notice: str
    summary: list[str]

    def count(self, split: str) -> int:
        """The number of images in a split."""
        return sum(length for _, length in self.shards[split])


def read_description(folder: Path) -> Description:
    """Reads the description of the prepared data set in a folder of one version.

    Raises:
        RefusedError: it names code that is not part of TFDS.
        OSError, ValueError: it is damaged or of another kind; the message is one line.
    """
    info = _read_info(folder / "dataset_info.json")
    if info.version != folder.name:
        raise ValueError(f"dataset_info.json is of version {printable(info.version)}")
    if len({split.name for split in info.splits}) < len(info.splits):
        raise ValueError("dataset_info.json names a split twice")
    metadata = {}
    if (folder / "metadata.json").exists():
        metadata = _read_object(folder / "metadata.json")
    summary = metadata.get("summary")
    return Description(
        features=_read_features(folder / "features.json"),
        shards={
            split.name: [
                (
                    folder / f"{info.name}-{split.name}.{info.file_format}-"
                    f"{number:05}-of-{len(split.lengths):05}",
                    length,
                )
                for number, length in enumerate(split.lengths)
            ]
            for split in info.splits
        },
        size=sum(split.size for split in info.splits),
        notice=printable(str(metadata.get("notice") or ""), _SHOWN),
        summary=[
            printable(str(line), _SHOWN)
            for line in (summary[:100] if isinstance(summary, list) else [])
        ],
    )


def _read_info(path: Path) -> _Info:
    try:
        return _Info.model_validate_json(_content(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise ValueError(f"dataset_info.json: {printable(reason, 200)}") from None


def _read_features(path: Path) -> frozenset[str]:
    content = _read_object(path)
    values: list[Any] = [content]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            for name in filter(None, map(value.get, _CLASS_KEYS)):
                if not (isinstance(name, str) and re.fullmatch(_TFDS_CLASS, name)):
                    raise RefusedError(
                        f"{path.name} names the class {printable(str(name))!r}, which is not one "
                        "of TFDS and could be any code"
                    )
            values += value.values()
        elif isinstance(value, list):
            values += value
    features = content.get("featuresDict")
    features = features.get("features") if isinstance(features, dict) else None
    if not isinstance(features, dict):
        raise ValueError("features.json lists no features")
    return frozenset(features)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {printable(str(error))}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: not an object")
    return content


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path.name} is missing or not a file")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_BYTES >> 20} MiB")
    return content
