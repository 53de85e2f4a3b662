"""Copies on this machine of what is at an address: fetched once, and sent back when they change.

A copy is in the private cache. A note beside it says which version of each object it holds, so that
only what has changed travels. Each file is put into place once it is complete, as is each object in
the store, so that nobody sees half of one. The files of a checkpoint belong together and are one
object there, a zip archive, whose checksums are verified when it is unpacked.

What is at an address may come from a stranger: names do not lead out of the copy, and nothing is
fetched for which the disk has no room.
"""

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from agenet.errors import UserError
from agenet.files import hash_text, write_json
from agenet.places.archives import is_name, is_packed, pack, remove, unpack, unpacked_name
from agenet.places.stores import Address, open_store, store_errors_explained
from agenet.weights.cache import cache_dir
from agenet.weights.connection import is_offline

_AT_ONCE = 8  # files
_SPARE_BYTES = 1 << 26  # left free on the disk
_UNUSED_DAYS = 30.0  # after which a copy is removed
_MOST_FILES = 5_000_000
# What tells two versions of an object apart: the first of these that a store states.
_VERSIONS = (
    "ETag",
    "etag",
    "blob_id",
    "md5Hash",
    "generation",
    "LastModified",
    "modified",
    "created",
)

UNSENT = "unsent"  # the mark of a copy whose changes have not all been sent

Select = Callable[[str], bool]


class Copy:
    """A folder on this machine that stands for the folder at an address.

    Args:
        address: of the folder.
        kind: copies of several kinds are apart from each other.
        folder: below `entry`; by default the name of the address.

    Attributes:
        entry: the folder in the cache that holds the copy and what is noted of it.
        folder: the copy.
        id: of this copy, for as long as it exists.
    """

    def __init__(self, address: Address, kind: str = "read", folder: str = "") -> None:
        self.address = address
        self.entry = _entries() / hash_text(f"{kind} {address}")[:16]
        self.folder = self.entry / (folder or address.name)
        self._note = self.entry / "copy.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to the cache {self.entry}: {error.strerror}; set AGENET_CACHE to a "
                "folder that can be written"
            ) from error
        note = self._read_note()
        self.id: str = note.get("id") or secrets.token_hex(8)
        # By the names of objects: the version there, and the state of the files here.
        self._known: dict[str, list[str]] = note["objects"]
        self._store: Any = None

    def fetch(self, select: Select = lambda name: True, *, keep_changes: bool = False) -> bool:
        """Makes the copy like what is at the address, which may be nothing.

        Args:
            select: whether to fetch an object, by its name below the address.
            keep_changes: if the objects are those that this copy knows, its files are newer and
                stay as they are.

        Returns:
            Whether there is anything at the address.

        Raises:
            UserError: the store cannot be read, or the disk is full.
        """
        if is_offline():
            if not self._known:
                raise UserError(f"{self.address} is not in the cache, and AGENET_OFFLINE is set")
            return True
        for attempt in range(3):
            there = self._list()
            versions = {name: _version(info) for name, info in there.items()}
            if keep_changes and self._versions() == versions:
                self._write_note()
                break
            try:
                self._fetch(there, select)
                break
            except FileNotFoundError as error:  # Removed since it was listed.
                if attempt == 2:
                    raise UserError(
                        f"{self.address} changes while it is read: try again"
                    ) from error
        _remove_unused(self.entry)
        return bool(there)

    def send(self, last: str = "", before: Callable[[], None] = lambda: None) -> None:
        """Makes what is at the address like the copy: sends what has changed, removes what is gone.

        Plain files come first, then checkpoints, then the file named `last`, which says that all is
        there; if that one changes, it is first removed there. Hidden files and links stay here.

        Args:
            last: the end of that file's name.
            before: called before each object; it may raise.

        Raises:
            UserError: the store denies this, or does not answer.
        """
        store, here = self._open(), self._units()

        def order(name: str) -> tuple[bool, bool, str]:
            return bool(last) and name.endswith(last), name.endswith(".zip"), name

        changed = sorted((n for n in here if self._state_known(n) != _state(here[n])), key=order)
        first = [name for name in changed if order(name)[0] and name in self._known]
        with store_errors_explained(self.address):
            for name in first:
                before()
                self._remove_there(store, name)
            bar = tqdm(
                changed, desc=f"sending to {self.address}", delay=3, leave=False, disable=None
            )
            for name in bar:
                before()
                state = _state(here[name])
                self._put(store, name, here[name])
                self._known[name] = [_version(store.info(self._path(name))), state]
                self._write_note()
            # What was never here is of an earlier version than a new last file.
            replaced = any(order(name)[0] for name in changed)
            gone = [
                n for n, (_, state) in self._known.items() if n not in here and (state or replaced)
            ]
            for name in gone:
                before()
                self._remove_there(store, name)

    def fetch_one(self, name: str, info: dict[str, Any]) -> Path:
        """Fetches one object, of which the store has said `info`; the copy then holds no other."""
        self._fetch({name: info}, lambda name: True)
        return self.folder / name

    @property
    def is_empty(self) -> bool:
        """Whether nothing was fetched or sent yet."""
        return not self._known

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes on this machine from changing the copy."""
        lock = FileLock(self.entry / ".lock")
        with suppress(OSError, NotImplementedError):  # Some file systems have no locks.
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _open(self) -> Any:
        self._store = self._store or open_store(self.address)
        return self._store

    def _path(self, name: str) -> str:
        return f"{self.address.path}/{name}"

    def _list(self) -> dict[str, dict[str, Any]]:
        """What the store says of each object, by its name below the address."""
        store = self._open()
        with store_errors_explained(self.address):
            try:
                found = store.find(self.address.path, detail=True)
            except FileNotFoundError:
                found = {}
            # Some say nothing of a missing bucket, and some accounts may not list all of one.
            if not found and self.address.scheme != "hf":
                with suppress(PermissionError):
                    store.ls(self.address.path.partition("/")[0])
        if len(found) > _MOST_FILES:
            raise UserError(f"{self.address} holds {len(found):,} files: name a folder in it")
        top = store._strip_protocol(str(self.address)).rstrip("/") + "/"
        names = {
            path.removeprefix(top): info for path, info in found.items() if path.startswith(top)
        }
        return {name: info for name, info in names.items() if is_name(name)}

    def _fetch(self, there: dict[str, dict[str, Any]], select: Select) -> None:
        for part in self.entry.glob(".part.*"):  # That a kill has left.
            remove(part)
        here = self._units()
        for name in here.keys() - there.keys():
            remove(here[name])
        for name in self._known.keys() - there.keys():
            del self._known[name]
        wanted = []
        for name, info in there.items():
            version = _version(info)
            if name in here and self._known.get(name) == [version, _state(here[name])]:
                continue
            if select(name):
                wanted.append(name)
            elif name in here:  # An older version, which must not be sent in the place of this one.
                remove(here[name])
            # What is still to be fetched is not known, so that the next start fetches it.
            self._known[name] = ["" if select(name) else version, ""]
        self._write_note()
        # An archive is there until it is unpacked.
        need = sum(_size(there[name]) * (2 if unpacked_name(name) else 1) for name in wanted)
        free = shutil.disk_usage(self.entry).free
        if need + _SPARE_BYTES > free:
            raise UserError(
                f"{self.address} needs {need:,} bytes in {self.entry}, which has {free:,} free: "
                "free some, or set AGENET_CACHE to a folder on another disk"
            )
        store = self._open()
        with (
            store_errors_explained(self.address, missing_passes=True),
            ThreadPoolExecutor(_AT_ONCE) as pool,
            tqdm(
                total=sum(_size(there[name]) for name in wanted),
                desc=f"fetching {self.address}",
                unit="B",
                unit_scale=True,
                delay=3,
                leave=False,
                disable=None,
            ) as bar,
        ):
            try:
                tasks = [pool.submit(self._get, store, name, there[name]) for name in wanted]
                for count, (name, task) in enumerate(zip(wanted, tasks, strict=True)):
                    self._known[name] = [_version(there[name]), task.result()]
                    bar.update(_size(there[name]))
                    if count % 100 == 99:  # A kill loses no more than these.
                        self._write_note()
            finally:
                pool.shutdown(cancel_futures=True)
                self._write_note()

    def _get(self, store: Any, name: str, info: dict[str, Any]) -> str:
        """Fetches one object, puts it into place and returns the state of what is there now."""
        target = self.folder / name
        part = self.entry / f".part.{secrets.token_hex(8)}"
        try:
            store.get_file(self._path(name), str(part))
            size = info.get("size")
            if size is not None and part.stat().st_size != size:
                raise UserError(f"{self.address / name} changed while it was fetched: try again")
            if folder := unpacked_name(name):
                target = self.folder / folder
                part = unpack(part, self.address / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if part.is_dir() or target.is_dir():
                remove(target)
            part.replace(target)
        finally:
            remove(part)
        return _state(target)

    def _put(self, store: Any, name: str, path: Path) -> None:
        if not path.is_dir():
            store.put_file(str(path), self._path(name))
            return
        archive = self.entry / f".part.{secrets.token_hex(8)}"
        try:
            pack(path, archive)
            store.put_file(str(archive), self._path(name))
        finally:
            archive.unlink(missing_ok=True)

    def _remove_there(self, store: Any, name: str) -> None:
        with suppress(FileNotFoundError):
            store.rm_file(self._path(name))
        del self._known[name]
        self._write_note()

    def _units(self) -> dict[str, Path]:
        """What travels as one object, by the object's name: files, and folders of checkpoints."""
        units, folders = {}, [self.folder]
        while folders:
            for path in folders.pop().iterdir():
                name = path.relative_to(self.folder).as_posix()
                if path.name.startswith(".") or path.is_symlink() or not is_name(name):
                    continue
                if is_packed(name):
                    units[f"{name}.zip"] = path
                elif path.is_dir():
                    folders.append(path)
                elif path.is_file():
                    units[name] = path
        return units

    def _versions(self) -> dict[str, str]:
        return {name: version for name, (version, _) in self._known.items()}

    def _state_known(self, name: str) -> str:
        return self._known.get(name, ["", ""])[1]

    def _read_note(self) -> dict[str, Any]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self._note.read_bytes())
            objects = {str(n): [str(v), str(s)] for n, (v, s) in note["objects"].items()}
            return {"id": str(note["id"]), "objects": objects}
        return {"objects": {}}

    def _write_note(self) -> None:
        content = {"address": str(self.address), "id": self.id, "objects": self._known}
        write_json(self._note, content)


def _entries() -> Path:
    return cache_dir() / "places"


def _remove_unused(used: Path) -> None:
    """Removes copies that nothing was fetched to or sent from for some time."""
    with suppress(OSError):
        (used / "used").touch()
        for entry in _entries().iterdir():
            oldest = time.time() - _UNUSED_DAYS * 24 * 3600
            notes = (entry / "used", entry / "copy.json")
            marks = [path.stat().st_mtime for path in notes if path.exists()]
            if entry == used or not marks or max(marks) > oldest or (entry / UNSENT).exists():
                continue
            with suppress(Timeout), FileLock(entry / ".lock", blocking=False):
                shutil.rmtree(entry, ignore_errors=True)


def _size(info: dict[str, Any]) -> int:
    return int(info.get("size") or 0)


def _version(info: dict[str, Any]) -> str:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    # fsspec's store in memory states a time in two ways.
    version = version.timestamp() if isinstance(version, datetime) else version
    return f"{info.get('size')} {version}"[:300]


def _state(path: Path) -> str:
    """What tells that files have changed: their names, sizes and times."""
    paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = []
    for each in paths:
        status = each.stat()
        lines.append(f"{each.relative_to(path).as_posix()} {status.st_size} {status.st_mtime_ns}")
    return hash_text("\n".join(lines))[:16]
