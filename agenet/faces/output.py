"""A file that replaces an older one once there is something in it."""

import os
from pathlib import Path

from agenet.files import output_exists, save_if_replaced, temporary_path


class OutputFile:
    """A file under a temporary name, to which `publish` gives its own while it is written.

    Until then an older file of that name stays. Afterwards others can read what is written, and a
    killed process leaves it there. Windows cannot rename an open file: there it is done at the end.

    Args:
        path: the file.
        overwrite: whether an existing file is replaced.

    Attributes:
        temporary: its first name, for what writes files by name.

    Raises:
        OSError: it cannot be written; also from the methods.
        UserError: from the methods: the file exists, or another program has replaced it.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path, self._overwrite = path, overwrite
        self.temporary = temporary_path(path)
        self._file = self.temporary.open("xb+")  # Whatever its name, this is the file.
        self._published = False

    def publish(self) -> None:
        """Gives the file its name; what was written before is kept from now on."""
        if not self._published and os.name != "nt":
            self._rename()

    def close(self, keep: bool = True) -> None:
        """Closes the file.

        Args:
            keep: whether to publish a file that is not published yet; else it is removed.
        """
        try:
            with self._file:
                if self._published:
                    save_if_replaced(self._file, self._path)
            if keep and not self._published:
                self._rename()
        finally:
            if not self._published:
                self.temporary.unlink(missing_ok=True)

    def _rename(self) -> None:
        if self._overwrite:
            os.replace(self.temporary, self._path)
        else:
            try:
                os.link(self.temporary, self._path)  # Unlike `replace` fails if there is a file.
            except FileExistsError as error:  # It did not exist when the command started.
                raise output_exists(self._path) from error
            except OSError:  # A file system without links.
                os.replace(self.temporary, self._path)
            self.temporary.unlink(missing_ok=True)
        self._published = True


def keep_after(kind: type[BaseException] | None) -> bool:
    """Whether what was written so far is wanted: after Ctrl-C it is, after an error it is not."""
    return kind is None or not issubclass(kind, Exception)
