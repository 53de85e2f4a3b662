"""Finds weights by name, wherever they are."""

import re
from pathlib import Path

from agenet.files import is_address
from agenet.places.fetching import fetch
from agenet.weights import hub


def find_weights(name_or_path: str | Path) -> Path:
    """Returns the bundled weights called by name, a weights file, or the folder of a run.

    Args:
        name_or_path: "default", a path, "hf://user/name", which `agenet push` has published, or
            another address of a weights file or a run.

    Raises:
        UserError: there are no such weights, or they cannot be fetched.
    """
    if is_address(name_or_path) and not _is_published(str(name_or_path)):
        return fetch(name_or_path)
    return hub.find_weights(name_or_path)


def _is_published(address: str) -> bool:
    return hub.is_hub_address(address) and not re.match("hf:/+datasets/", address)
