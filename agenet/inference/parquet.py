"""Writes the results for image files as a Parquet table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agenet.errors import UserError, require_packages
from agenet.faces.output import OutputFile
from agenet.files import check_output
from agenet.inference.results import COLUMNS, Result, face_rows

ROWS = 50_000  # that are held in memory, and in a row group of the file

_TYPES = {
    "string": ("file", "age_group", "gender", "error"),
    "int32": ("face", "age_low", "age_high"),
}
_NUMBER = "float64"


def check_parquet(name: str) -> None:
    """Raises `UserError`, before anything is predicted, if no Parquet file can be written."""
    if name == "-":
        raise UserError("--parquet: name a file: a table in Parquet cannot be written to stdout")
    require_packages("parquet", "--parquet", "pyarrow")


def create_schema() -> Any:
    """The columns, as a `pyarrow.Schema`."""
    import pyarrow as pa

    kinds = {column: kind for kind, columns in _TYPES.items() for column in columns}
    return pa.schema([(name, pa.type_for_alias(kinds.get(name, _NUMBER))) for name in COLUMNS])


def table_rows(result: Result) -> list[tuple[Any, ...]]:
    """The rows of a result, as `create_table` takes them."""
    # Parquet holds text in UTF-8 only.
    name = result.path.encode(errors="backslashreplace").decode()
    return [(name, *row[1:-1], row[-1] or None) for row in face_rows(result)]


def create_table(rows: Sequence[tuple[Any, ...]], schema: Any) -> Any:
    """The `pyarrow.Table` of rows."""
    import pyarrow as pa

    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


class ParquetWriter:
    """Parquet: the rows and columns of the CSV, with nulls for what is missing.

    A context manager. Parquet can be read only once it is complete, so the file has a temporary
    name until the end; also after an error or Ctrl-C it holds what was written until then.

    Args:
        path: the file.
        overwrite: whether an existing file is replaced.

    Raises:
        UserError: pyarrow is not installed, or the file may not be written.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        check_parquet(str(path))
        from pyarrow import parquet

        check_output(path, overwrite)
        self._schema = create_schema()
        self._path = path
        self._rows: list[tuple[Any, ...]] = []
        self._is_whole = True
        self._is_empty = True
        self._output = OutputFile(path, overwrite)
        try:
            self._file = parquet.ParquetWriter(self._output.temporary, self._schema)
        except BaseException:
            self._output.close(keep=False)
            raise

    def write(self, result: Result) -> None:
        """Adds a row for each face, image without a face, or error.

        Raises:
            UserError: the file cannot be written.
        """
        self._rows += table_rows(result)
        if len(self._rows) >= ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        table = create_table(self._rows, self._schema)
        self._rows.clear()
        self._is_empty = False
        self._try(self._file.write_table, table)

    def _try(self, write: Any, *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError as error:
            self._is_whole = False
            raise UserError(
                f"{self._path} could not be written completely ({error}): is the disk full?"
            ) from error

    def close(self) -> None:
        """Completes the file and gives it its name; without a result there is none."""
        try:
            if self._rows and self._is_whole:
                self._write_rows()
            self._try(self._file.close)
        finally:
            self._output.close(keep=self._is_whole and not self._is_empty)

    def __enter__(self) -> "ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
