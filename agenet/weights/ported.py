"""What agenet writes into files for other frameworks, so that reading them again loses nothing.

Other frameworks have one classifier and no place for the rest: the note in a file (see
`agenet.weights.formats.note`) holds the specification, and which columns of the classifier belong
to which head.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agenet.errors import UserError
from agenet.weights.names import MAPS
from agenet.weights.spec import WeightsSpec

Columns = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Note:
    """The note in a file.

    Attributes:
        spec: of the weights.
        names: whose names the tensors have, a key of `agenet.weights.names.MAPS`.
        columns: of each head, its first output and the one after its last.
    """

    spec: WeightsSpec
    names: str
    columns: Columns

    def to_json(self) -> str:
        spec = json.loads(self.spec.to_json())
        return json.dumps({"spec": spec, "names": self.names, "columns": self.columns})

    @staticmethod
    def from_json(text: str) -> "Note":
        """Reads an untrusted text.

        Raises:
            UserError: it is not a note of agenet's.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.keys() != {"spec", "names", "columns"}:
            raise UserError("the note that agenet left in it is damaged")
        spec = WeightsSpec.from_json(json.dumps(value["spec"]))
        if not isinstance(value["names"], str) or value["names"] not in MAPS:
            raise UserError("the note that agenet left in it names no known source")
        return Note(spec, value["names"], _columns(value["columns"], spec.classes))


def _columns(value: object, classes: Mapping[str, int]) -> Columns:
    """Checks that the columns are those of the classes, side by side in any order."""
    columns: Columns = {}
    first = 0
    pairs = value.items() if isinstance(value, dict) else ()
    for task, ends in sorted(pairs, key=lambda pair: pair[1][0] if _is_pair(pair[1]) else -1):
        if not _is_pair(ends) or ends[0] != first or ends[1] - first != classes.get(task):
            break
        columns[task], first = (first, ends[1]), ends[1]
    if columns.keys() != classes.keys():
        raise UserError("the note that agenet left in it has other heads than its classifier")
    return columns


def _is_pair(ends: object) -> bool:
    return isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends)


def split_head(tensors: Mapping[str, np.ndarray], columns: Columns) -> dict[str, np.ndarray]:
    """Splits the one classifier of a network in our layout into its heads.

    Raises:
        UserError: it has another number of outputs.
    """
    outputs = max((end for _, end in columns.values()), default=0)
    result = {name: value for name, value in tensors.items() if "/heads/" not in name}
    for name in tensors.keys() - result.keys():
        value, leaf = tensors[name], name.rpartition("/")[2]
        if not value.ndim or value.shape[-1] != outputs:
            raise UserError(f"its classifier has the shape {value.shape}, not {outputs} outputs")
        for task, (first, end) in columns.items():
            result[f"params/heads/{task}/{leaf}"] = np.ascontiguousarray(value[..., first:end])
    return result
