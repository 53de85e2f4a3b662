"""Folders that are worked on here and kept at an address: work directories, prepared data sets."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agenet.errors import UserError, say
from agenet.files import exclusive_lock, expand_home, is_address
from agenet.places.copies import UNSENT, Copy, Select
from agenet.places.fetching import fetch_folder
from agenet.places.lease import Lease
from agenet.places.stores import check_writable, open_store, parse_address

_REPORT = "report.json"
_DESCRIPTION = "dataset_info.json"


@dataclass(frozen=True)
class Place:
    """A folder to work in.

    Attributes:
        folder: on this machine.
        send: to be called when what is in it should survive this machine; does nothing for a
            folder that is not kept elsewhere.
    """

    folder: Path
    send: Callable[[], None] = lambda: None


@contextmanager
def open_workdir(name: str | Path, *, exists: bool = False) -> Iterator[Place]:
    """Opens the work directory of a run, which may be an address.

    That one is fetched, so that a run resumes here that began elsewhere, and held by a lease. It is
    sent back at each `Place.send` and at the end. If an earlier process here could not send all,
    and nobody has sent anything since, what is here counts.

    Args:
        name: a path or an address.
        exists: whether there must be something at the address.

    Raises:
        UserError: another process uses it, or it cannot be read or written.
    """
    if not is_address(name):
        yield Place(Path(name))
        return
    copy = Copy(parse_address(name), "work")
    with _held(copy, _REPORT, is_run=True) as send:
        if exists and copy.is_empty:
            raise UserError(f"{copy.address}: there is nothing there: check the name")
        yield Place(copy.folder, send)
        say(f"sending what is new to {copy.address}")


def look_at_workdir(name: str | Path) -> Path:
    """The work directory of a run, to be read only; there may be nothing at its address yet."""
    if not is_address(name):
        return Path(name)
    address = parse_address(name)
    check_writable(address)
    return fetch_folder(address, may_be_missing=True)


@contextmanager
def open_data_dir(data_dir: str | Path, name: str) -> Iterator[Path]:
    """Opens the folder of prepared data sets to prepare one there; it may be an address.

    From an address only the description of the data set is fetched, if it is prepared already. What
    is new is sent at the end of the block if that raises nothing, its description last, so that
    nobody reads a part.

    Args:
        data_dir: a path or an address.
        name: of the data set, "data_set/config".
    """
    if not is_address(data_dir):
        yield expand_home(data_dir)
        return
    copy = _data_set(data_dir, name)
    with _held(copy, _DESCRIPTION, lambda file: file.endswith(".json")):
        yield copy.entry


def fetch_data_set(data_dir: str | Path, name: str) -> Path:
    """The copy of a data set's folder at an address, which holds its versions, if there are any.

    Args:
        data_dir: an address.
        name: of the data set, "data_set/config".
    """
    copy = _data_set(data_dir, name)
    with copy.locked():
        copy.fetch()
    return copy.folder


def _data_set(data_dir: str | Path, name: str) -> Copy:
    return Copy(parse_address(data_dir) / name, "data set", folder=name)


@contextmanager
def _held(
    copy: Copy, last: str, select: Select = lambda name: True, *, is_run: bool = False
) -> Iterator[Callable[[], None]]:
    """Locks a copy here, holds its address by a lease, fetches it, and sends it at the end.

    Args:
        copy: to work on.
        last: see `Copy.send`.
        select: see `Copy.fetch`.
        is_run: it is also sent if the block ends with a `UserError`, and is kept here until all of
            it could be sent.

    Yields:
        A function that sends the copy.
    """
    check_writable(copy.address)
    with exclusive_lock(copy.entry, str(copy.address)):
        lease = Lease(open_store(copy.address), copy.address, copy.id)
        lease.acquire()
        unsent = copy.entry / UNSENT

        def send() -> None:
            copy.send(last, before=lease.check)

        try:
            # If this fails nothing is sent, for what is here may be old.
            copy.fetch(select, keep_changes=is_run)
            if is_run:
                unsent.touch()
            try:
                yield send
            except UserError:
                if is_run:
                    with suppress(UserError):
                        send()
                raise
            send()
            unsent.unlink(missing_ok=True)
        finally:
            lease.release()
