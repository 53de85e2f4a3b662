"""Finds what is at an address as files on this machine."""

from collections.abc import Collection
from pathlib import Path

from agenet.errors import UserError
from agenet.places.copies import Copy, Select
from agenet.places.stores import Address, open_store, parse_address, store_errors_explained
from agenet.weights.connection import is_offline


def fetch(text: str | Path) -> Path:
    """The copy of the file or the folder at an address.

    Raises:
        UserError: it is no address, there is nothing, or it cannot be fetched.
    """
    address = parse_address(text)
    if is_offline():
        for copy in (Copy(address), Copy(address.parent, f"file {address.name}")):
            found = copy.folder / address.name if copy.address != address else copy.folder
            if not copy.is_empty and found.exists():
                return found
        raise UserError(f"{address} is not in the cache, and AGENET_OFFLINE is set")
    store = open_store(address)
    with store_errors_explained(address):
        info = store.info(address.path)
    if info["type"] != "file":
        return fetch_folder(address)
    copy = Copy(address.parent, f"file {address.name}")
    with copy.locked():
        return copy.fetch_one(address.name, info)


def fetch_folder(
    address: Address, select: Select = lambda name: True, *, may_be_missing: bool = False
) -> Path:
    """The copy of the folder at an address, with the objects of the names that `select` accepts.

    Raises:
        UserError: there is nothing, unless that `may_be_missing`, or it cannot be fetched.
    """
    copy = Copy(address)
    with copy.locked():
        if not copy.fetch(select) and not may_be_missing:
            raise UserError(f"{address}: there is nothing there: check the name")
    return copy.folder


def fetch_files(address: Address, names: Collection[str]) -> Path:
    """The copy of the folder at an address, with the files of these names as far as they exist."""
    wanted = set(names)
    return fetch_folder(address, wanted.__contains__)
