"""The weights that come with agenet, and what a user may name instead of them."""

import difflib
from pathlib import Path

from agenet.errors import UserError
from agenet.weights.spec import NOT_FOLD_0

DEFAULT = "default"
DEFAULT_FILE = Path(__file__).parent / "default.safetensors"
# As `WeightsSpec.trained_on`, of which the file says nothing.
DEFAULT_TRAINED_ON = {"fairface": NOT_FOLD_0}


def find_weights(name_or_path: str | Path) -> Path:
    """A file of weights or the folder of a run.

    Raises:
        UserError: there is no such thing.
    """
    if str(name_or_path) == DEFAULT:
        if not DEFAULT_FILE.is_file():
            raise UserError(f"{DEFAULT_FILE} is missing: install agenet again")
        return DEFAULT_FILE
    path = Path(name_or_path).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(str(name_or_path), [DEFAULT], n=1)
        did_you_mean = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f'there are no weights "{name_or_path}": give "{DEFAULT}", a .safetensors file, or '
            f"the --workdir of a run{did_you_mean}"
        )
    return path
