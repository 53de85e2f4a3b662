"""The weights bundled with agenet; the model card of each set is beside it (default.md)."""

import difflib
from pathlib import Path

from agenet.errors import UserError
from agenet.files import expand_home
from agenet.weights.spec import NOT_FOLD_0

DEFAULT = "default"
DEFAULT_FILE = Path(__file__).parent / "default.safetensors"
# `WeightsSpec.trained_on`, which the file itself does not state.
DEFAULT_TRAINED_ON = {"fairface": NOT_FOLD_0}


def find_weights(name_or_path: str | Path) -> Path:
    """Returns the bundled weights called by name, or an existing weights file or run folder.

    Raises:
        UserError: there is neither.
    """
    if str(name_or_path) == DEFAULT:
        if not DEFAULT_FILE.is_file():
            raise UserError(f"{DEFAULT_FILE} is missing: install agenet again")
        return DEFAULT_FILE
    path = expand_home(name_or_path)
    if not path.exists():
        near = difflib.get_close_matches(str(name_or_path), [DEFAULT], n=1)
        did_you_mean = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f'there are no weights "{name_or_path}": give "{DEFAULT}", a .safetensors file, or '
            f"the --workdir of a run{did_you_mean}"
        )
    return path
