"""Predicts any number of image files with Apache Beam, on one machine or many.

The folder of results holds `lists/00000.json`, the names of up to `FILES` images each, and for each
list the files `faces-00000.jsonl` or `.parquet` with the results and `bad-00000.jsonl` with the
images that could not be read. `faces-*` gets its name when all images of its list are done, so a
run that was ended goes on with the lists that have none, and images in no list get new ones.
"""

import io
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference

from agenet.errors import UserError, one_line, printable
from agenet.faces.image_formats import is_read
from agenet.faces.image_io import FileImage, ImageFileError, read_image_bytes, read_image_file
from agenet.faces.selection import ALL_FACES, FaceSelection
from agenet.inference.image_files import ImagePredictor, predict_files
from agenet.inference.inputs import ImageSearch
from agenet.inference.results import JsonLinesWriter, Result, Summary

FILES = 1000  # in a list
MAX_BYTES = 256 * 2**20  # of a file that is not on this machine

_COUNTERS = ("images", "faces", "without_face", "problems")
_PLAIN = CompressionTypes.UNCOMPRESSED


@dataclass(frozen=True)
class Work:
    """What is done with each image; workers receive a copy.

    Attributes:
        load: loads the predictor.
        select: the faces to predict.
        format: "jsonl" or "parquet".
        cropped: each image is one face.
        distribution: write the probability of each year to JSON lines, too.
        threads: that read images in each process; None: one for each core.
    """

    load: Callable[[], ImagePredictor]
    select: FaceSelection = ALL_FACES
    format: str = "jsonl"
    cropped: bool = False
    distribution: bool = False
    threads: int | None = None


def predict_with_beam(
    paths: Sequence[str], out: str, work: Work, settings: Mapping[str, Any], options: Any
) -> Iterator[str]:
    """Predicts images, and resumes a run that was ended.

    Args:
        paths: files, folders of this machine, and patterns on any file system that Beam knows.
        out: the folder of results, on a file system that all workers reach.
        work: what to do.
        settings: what the results depend on, for JSON; a run resumes with the same ones only.
        options: of Beam's pipeline, see `agenet.distributed.beam.parse_beam_options`.

    Yields:
        Lines that say what is done and what was done.

    Raises:
        UserError: the predictor cannot be loaded, there are no such files, the folder holds
            something else, or the pipeline fails.
    """
    work.load()  # A mistake shows before anything is written.
    # It logs errors that are raised as well, with their tracebacks.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    check_folder(out, settings)
    lists = _list_files(paths, out)
    pending = [name for name in lists if not FileSystems.exists(_result(out, name, work.format))]
    if done := len(lists) - len(pending):
        yield f"{done:,} of {len(lists):,} lists are done already"
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Lists" >> beam.Create(pending)
        | "Spread" >> beam.Reshuffle()
        | "Predict" >> RunInference(_Handler(out, work))
        | "Count" >> beam.Map(_count)
    )
    try:
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as error:  # Of any type: they may come from other machines.
        if "KeyboardInterrupt" in _reason(error):  # While this process predicts.
            raise KeyboardInterrupt from error
        raise UserError(
            f"{_reason(error)}; what is done is kept: the same command does the rest"
        ) from error
    if str(state) != "DONE":
        raise UserError(f"the pipeline ended as {state}: the same command does the rest")
    summary = _summary(result)
    yield summary.lines()[0]
    if summary.problems:
        yield f"problems are in {FileSystems.join(out, 'bad-*.jsonl')}"


class _Handler(ModelHandler[str, Mapping[str, int], ImagePredictor]):
    """Loads the predictor once in each process; predicts lists, and writes their results."""

    def __init__(self, out: str, work: Work) -> None:
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._out, self._work = out, work

    def load_model(self) -> ImagePredictor:
        return self._work.load()

    def run_inference(
        self,
        batch: Sequence[str],
        model: ImagePredictor,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterator[Mapping[str, int]]:
        for name in batch:
            yield predict_list(self._out, name, model, self._work)


def predict_list(out: str, name: str, predictor: ImagePredictor, work: Work) -> dict[str, int]:
    """Predicts the images of a list and writes their results; returns the counts."""
    paths = json.loads(_read(FileSystems.join(out, "lists", f"{name}.json")))
    results = _Results(work)
    summary = predict_files(
        map(Result, paths),
        predictor,
        [results],
        work.cropped,
        select=work.select,
        threads=work.threads,
        read_image=read_anywhere,
    )
    if summary.stopped:
        raise summary.stopped
    if bad := results.bad.getvalue():
        _write(FileSystems.join(out, f"bad-{name}.jsonl"), bad.encode())
    # The last: it says that the list is done.
    _write(_result(out, name, work.format), results.content())
    return {counter: getattr(summary, counter) for counter in _COUNTERS}


class _Results:
    """Holds the results of a list as they are written; those of bad files apart."""

    def __init__(self, work: Work) -> None:
        self.bad, self._lines = io.StringIO(), io.StringIO()
        self._bad = JsonLinesWriter(self.bad)
        self._good = JsonLinesWriter(self._lines, distribution=work.distribution)
        self._rows: list[tuple[Any, ...]] = []
        self._is_table = work.format == "parquet"

    def write(self, result: Result) -> None:
        if result.error:
            self._bad.write(result)
        elif self._is_table:
            from agenet.inference.parquet import table_rows

            self._rows += table_rows(result)
        else:
            self._good.write(result)

    def content(self) -> bytes:
        if not self._is_table:
            return self._lines.getvalue().encode()
        from pyarrow import parquet

        from agenet.inference.parquet import create_schema, create_table

        file = io.BytesIO()
        parquet.write_table(create_table(self._rows, create_schema()), file)
        return file.getvalue()


def read_anywhere(
    path: str, /, *, to_detect: bool = False, admit: Callable[[int], object] | None = None
) -> FileImage:
    """Reads an image from any file system that Beam knows; see `read_image_file`."""
    if FileSystems.get_scheme(path) is None:
        return read_image_file(path, to_detect=to_detect, admit=admit)
    try:
        content = _read(path, MAX_BYTES + 1)
    except Exception as error:  # Each file system has its own.
        raise ImageFileError(path, printable(str(error) or type(error).__name__, 300)) from error
    if len(content) > MAX_BYTES:
        raise ImageFileError(path, f"larger than {MAX_BYTES // 2**20} MB")
    return read_image_bytes(content, to_detect=to_detect, admit=admit)


def check_folder(out: str, settings: Mapping[str, Any]) -> None:
    """Begins a folder of results, or checks that its run had the same settings.

    Raises:
        UserError: it holds something else, or cannot be written.
    """
    path, content = FileSystems.join(out, "settings.json"), json.dumps(dict(settings), indent=2)
    try:
        if FileSystems.exists(path):
            before = json.loads(_read(path))
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed:
                raise UserError(
                    f"--out {out} holds results with another {', '.join(changed)}: name another "
                    "folder"
                )
            return
        if any(match.metadata_list for match in FileSystems.match([FileSystems.join(out, "*")])):
            raise UserError(f"--out {out} holds other files: name another folder")
        for folder in (out, FileSystems.join(out, "lists")):
            if not FileSystems.exists(folder):
                FileSystems.mkdirs(folder)
        _write(path, content.encode())
    except UserError:
        raise
    except Exception as error:  # Each file system has its own.
        raise UserError(f"--out {out} cannot be used: {_reason(error)}") from error


def _list_files(paths: Sequence[str], out: str) -> list[str]:
    """Puts images that are in no list yet into new lists; returns the names of all lists."""
    (match,) = FileSystems.match([FileSystems.join(out, "lists", "*.json")])
    lists = sorted(metadata.path for metadata in match.metadata_list)
    known = {path for file in lists for path in json.loads(_read(file))}
    new = sorted(set(_find(paths, out)) - known)
    names = [Path(file).stem for file in lists]
    for start in range(0, len(new), FILES):
        name = f"{len(names):05}"
        content = json.dumps(new[start : start + FILES])
        _write(FileSystems.join(out, "lists", f"{name}.json"), content.encode())
        names.append(name)
    return names


def _find(paths: Sequence[str], out: str) -> Iterator[str]:
    for path in paths:
        if FileSystems.get_scheme(path) is None:
            # Workers may have started in another folder.
            absolute = str(Path(path).absolute())
            for found in ImageSearch([absolute], leave_out=out):
                if found.error:
                    raise UserError(f"{found.path}: {found.error}")
                yield found.path
            continue
        is_folder = path.endswith("/")
        try:
            (match,) = FileSystems.match([path + "**" if is_folder else path])
        except Exception as error:
            raise UserError(f"{path}: {_reason(error)}") from error
        files = [metadata.path for metadata in match.metadata_list]
        if is_folder:
            files = [file for file in files if is_read(Path(file).suffix.lower())]
        if not files:
            raise UserError(f"{path}: matches no {'image' if is_folder else 'file'}")
        yield from files


def _result(out: str, name: str, format: str) -> str:
    return FileSystems.join(out, f"faces-{name}.{format}")


def _read(path: str, most: int = -1) -> bytes:
    with FileSystems.open(path, compression_type=_PLAIN) as file:
        return file.read(most)


def _write(path: str, content: bytes) -> None:
    """Writes a file that has its name once it is complete."""
    unfinished = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        with FileSystems.create(unfinished, compression_type=_PLAIN) as file:
            file.write(content)
        FileSystems.rename([unfinished], [path])
    except BaseException:
        if FileSystems.exists(unfinished):
            FileSystems.delete([unfinished])
        raise


def _count(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        Metrics.counter("agenet", name).inc(count)


def _summary(result: Any) -> Summary:
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace("agenet"))
    counts = {counter.key.metric.name: counter.result for counter in found["counters"]}
    return Summary(**{name: counts.get(name, 0) for name in _COUNTERS})


def _reason(error: BaseException) -> str:
    """The last line of an error, in which Beam repeats the traceback of a worker."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    last = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
    return one_line(last.rpartition("UserError: ")[2].partition(" [while running")[0])[:500]
