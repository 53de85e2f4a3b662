"""Finds the files of a release where an archive was packed again with other folders around them."""

from collections.abc import Set
from pathlib import Path, PurePosixPath

from agenet.errors import UserError

_MAX_NAME = 1000  # characters; longer names match nothing
_SAMPLE = 200  # of the files of a folder, to find out where they are


class Layout:
    """Maps the names in an archive to paths of the release.

    Only names that are in the archive as released are taken. Where there is none, `moved` has the
    layout of an archive whose files are below further folders, or lack their top folder.
    """

    def __init__(self, wanted: Set[str], archive: str, dropped: int = 0, top: str = ""):
        """Takes each wanted file once.

        Args:
            wanted: paths as released.
            archive: name of the archive, for the top folder that may be missing.
            dropped: the number of folders in front of the names in the archive.
            top: the top folder that the names in the archive lack.
        """
        self._wanted, self._left = wanted, set(wanted)
        self._archive, self._dropped, self._top = archive, dropped, top
        self._moved: Layout | None = None
        self._missing_top = "" if dropped or top else _missing_top(wanted, archive)

    def take(self, name: str) -> str | None:
        """The released path of a file; None if it is not wanted or was taken before."""
        parts = name.split("/", self._dropped)
        if len(parts) > self._dropped:
            released = self._top + parts[-1]
            if released in self._left:
                self._left.remove(released)
                return released
        if not self._moved and len(self._left) == len(self._wanted):
            self._moved = self._find_moved(name)
        return None

    def moved(self) -> "Layout | None":
        """The layout to read with instead, if nothing was taken with this one."""
        return self._moved if len(self._left) == len(self._wanted) else None

    def _find_moved(self, name: str) -> "Layout | None":
        if self._dropped or self._top or len(name) > _MAX_NAME:
            return None
        for dropped in range(1, name.count("/") + 1):
            if name.split("/", dropped)[-1] in self._wanted:
                return Layout(self._wanted, self._archive, dropped=dropped)
        if self._missing_top and self._missing_top + name in self._wanted:
            return Layout(self._wanted, self._archive, top=self._missing_top)
        return None


def _missing_top(wanted: Set[str], archive: str) -> str:
    """The top folder, with a slash, of what an archive should hold; "" if that is ambiguous.

    Of several top folders it is the one that the archive is named after, such as "val" for
    "fairface_val.tar".
    """
    tops = {path.partition("/")[0] for path in wanted}
    if len(tops) > 1:
        tops = {top for top in tops if top in archive.split(".")[0].split("_")}
    return f"{tops.pop()}/" if len(tops) == 1 else ""


def find_moved(folder: Path, wanted: list[str]) -> Path | None:
    """Finds the top folder of an extracted archive in a folder, or one level further down.

    Args:
        folder: named after the top folder of the archive.
        wanted: paths as released, all with that top folder.

    Returns:
        The folder that the wanted paths are in; None if there is none.
    """
    sample = wanted[:: max(1, len(wanted) // _SAMPLE)]
    outer = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = (path for path in outer if any(file_in(path / name) for name in sample))
    return next(found, None)


def file_in(path: Path) -> bool:
    """Whether there is a file at a path that names from a table are part of."""
    try:
        return path.is_file()
    except OSError:  # Too long a name.
        return False


def member_name(archive: Path, name: str) -> str:
    """Normalises the name of a file in an archive.

    Raises:
        UserError: it points outside the archive.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{archive}: refused, because member {name[:200]!r} points outside the archive: "
            "this is not the archive as released"
        )
    return str(parts)
