"""Programs that are killed at an operation on files or at a moment, and run again."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.random import Generator
from tqdm import tqdm

from agenet.errors import one_line_errors
from agenet.runs import child_process
from tests.data_prep import test_adience
from tests.mutations.command import WrongError, process_context
from tests.mutations.images import photo
from tests.mutations.judge import HOME, OUTPUT, TMP
from tests.mutations.kind import Change, Kind
from tests.mutations.releases import rows_of

PLAN = "plan.json"  # in the input: when to kill, and with which signal
OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
# Parts of names of files that only a program at work may leave.
HIDDEN = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{16}\.tmp$")
UNFINISHED = re.compile(r"tmp|part$|incomplete|replaced|unfinished", re.I)
RANDOM = re.compile(r"[0-9a-f]{32}")  # in names of a checkpoint's files


def run_program(arguments: list[str], plan: dict[str, Any], inside: Path) -> tuple[int, str, int]:
    """Runs `agenet ARGUMENTS` in a process of its own, and kills it as planned.

    Returns:
        Its exit code, negative for a signal; stderr; the number of its operations on files.
    """
    context = process_context()
    theirs, ours = context.Pipe()
    with tempfile.NamedTemporaryFile("r", errors="replace") as stderr:
        process = context.Process(
            target=_program, args=(arguments, plan, str(inside), stderr.name, ours)
        )
        process.start()
        ours.close()
        if "seconds" in plan:
            process.join(plan["seconds"])
            if process.is_alive() and process.pid:
                os.kill(process.pid, plan["signal"])
        limit = 120 + 5 * plan.get("duration", 60)
        process.join(limit)
        if process.is_alive():
            process.kill()
            raise WrongError(f"hangs: killed after {limit:.0f} s")
        count = 0
        with contextlib.suppress(EOFError):
            count = theirs.recv() if theirs.poll(0) else 0
        return process.exitcode or 0, stderr.read(), count


def _program(
    arguments: list[str], plan: dict[str, Any], inside: str, stderr: str, connection: Any
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    scratch = Path(inside).parent
    os.environ |= {"HOME": f"{scratch / HOME}", "TMPDIR": f"{scratch / TMP}"}
    os.environ["AGENET_CACHE"] = f"{scratch.parent / 'cache'}"
    os.environ["MPLCONFIGDIR"] = f"{scratch.parent / 'cache/matplotlib'}"  # It writes to HOME.
    tempfile.tempdir = None
    tqdm.set_lock(threading.RLock())  # Its own is a semaphore, which a kill leaves behind.
    child_process.PRELOAD = "tests.mutations.preload"  # registers the tiny network
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main, count = threading.get_ident(), 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event in OPERATIONS
        if event == "open":
            writes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and inside in str(args[0]):
            count += 1
            if count == plan.get("operation"):
                os.kill(os.getpid(), plan["signal"])
                while threading.get_ident() == main and plan["signal"] == signal.SIGKILL:
                    time.sleep(1)

    sys.addaudithook(hook)
    from agenet.cli.app import run_command

    try:
        with one_line_errors():
            run_command(arguments)
    finally:
        connection.send(count)


def again(arguments: list[str], inside: Path) -> None:
    """Runs the same command again, to its end."""
    code, stderr, _ = run_program(arguments, {}, inside)
    if code:
        raise WrongError(f"the same command again ends with {code}: {stderr[-300:]}")


def is_kept(kept: Any, before: Any) -> bool:
    """Whether an output is still there; the rows of one that is interrupted may be fewer."""
    if isinstance(kept, dict) and "rows" in kept:
        return all(row in before["rows"] for row in kept["rows"])
    return bool(kept == before)


def check_end(code: int, stderr: str, plan: dict[str, Any]) -> None:
    """A program that is asked to stop says so in a line; one that ends well has not heard."""
    if "Traceback" in stderr:
        raise WrongError(f"traceback after {plan}: {stderr[-400:]}")
    if plan["signal"] == signal.SIGKILL:
        return
    if code not in (0, 1, 130, 143, -signal.SIGTERM):
        raise WrongError(f"exit code {code} after {plan}: {stderr[-300:]}")


def files_of(folder: Path) -> set[str]:
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {RANDOM.sub("*", name) for name in files}


def mutate(folder: Path, rng: Generator) -> Change:
    """Plans the moment: one of the operations of an undisturbed run, or a time."""
    plan = json.loads((folder / PLAN).read_text())
    chosen: dict[str, Any] = {
        "signal": int(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])),
        "replaces": bool(rng.integers(2)) and plan["replaces"],
    }
    if rng.random() < 0.7:
        chosen["operation"] = 1 + int(rng.integers(plan["operations"]))
    else:
        chosen["seconds"] = round(float(rng.uniform(0, 1.1 * plan["duration"])), 3)
    (folder / PLAN).write_text(json.dumps(plan | chosen))
    return Change(str(chosen), 0)


def use(
    folder: Path,
    output: Path,
    arguments: Callable[[Path, Path], list[str]],
    result: Callable[[Path], Any],
    in_place: bool,
) -> Any:
    """Kills the command and runs it again.

    Args:
        folder: the input.
        output: the folder to write into.
        arguments: of the command, from both folders.
        result: of the output, for comparison.
        in_place: whether the same command repairs and goes on; else it gets --overwrite.
    """
    plan = json.loads((folder / PLAN).read_text())
    command = arguments(folder, output)
    replace = [*command, *([] if in_place else ["--overwrite"])]
    if "signal" not in plan:
        again(command, output)
        return {"result": result(output), "files": files_of(output)}
    before = None
    if plan["replaces"]:
        again(command, output)
        before = result(output)
    code, stderr, _ = run_program(replace if before else command, plan, output)
    check_end(code, stderr, plan)
    if plan["signal"] == signal.SIGKILL:  # The system clears this folder, not the program.
        for path in (output.parent / TMP).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    left = [name for name in files_of(output) if UNFINISHED.search(name)]
    if plan["signal"] == signal.SIGTERM and left:
        raise WrongError(f"SIGTERM leaves {left[:4]}")
    if before is not None:
        try:
            kept = result(output)
        except Exception as error:
            raise WrongError(f"what was there before is lost: {error}"[:300]) from error
        if not is_kept(kept, before):
            raise WrongError("what was there before has changed")
    again(replace, output)
    return {"result": result(output), "files": files_of(output)}


def compare(result: Any, right: Any, change: Change) -> str:
    # A name that nobody can guess cannot be found again after a SIGKILL: its file stays, hidden.
    extra = {name for name in result["files"] - right["files"] if not HIDDEN.search(name)}
    if extra:
        return f"left behind: {sorted(extra)[:4]}"
    if missing := sorted(right["files"] - result["files"]):
        return f"missing: {missing[:4]}"
    return "" if result["result"] == right["result"] else "another result than without a kill"


def plan_for(folder: Path, arguments: Callable[[Path, Path], list[str]], replaces: bool) -> None:
    """Writes how long the command takes, and how many operations."""
    for _ in range(2):  # The second time libraries are loaded.
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / OUTPUT
            for name in (OUTPUT, HOME, TMP):
                (Path(scratch) / name).mkdir()
            start = time.monotonic()
            code, stderr, count = run_program(arguments(folder, output), {}, output)
            assert code == 0, stderr
            duration = time.monotonic() - start
    plan = {"operations": max(count, 1), "duration": duration, "replaces": replaces}
    (folder / PLAN).write_text(json.dumps(plan))


# The commands: what they read, their arguments, and what is compared.


def predict_input(folder: Path) -> None:
    (folder / "photos").mkdir()
    for number in range(3):
        photo(200 + 20 * number).save(folder / f"photos/{number}.jpg")


def predict_arguments(folder: Path, output: Path) -> list[str]:
    files = ["--csv", f"{output / 'a.csv'}", "--jsonl", f"{output / 'b.jsonl'}"]
    return ["predict", f"{folder / 'photos'}", *files, "--annotated", f"{output / 'copies'}"]


def predict_result(output: Path) -> Any:
    rows = [json.loads(line) for line in (output / "b.jsonl").read_text().splitlines()]
    csv = [line.rpartition("photos")[2] for line in (output / "a.csv").read_text().splitlines()]
    sizes = [path.stat().st_size for path in sorted((output / "copies").glob("[0-9]*"))]
    return {"rows": [row | {"file": Path(row["file"]).name} for row in rows] + csv, "sizes": sizes}


def export_arguments(folder: Path, output: Path) -> list[str]:
    return ["export", "default", str(output / "network.onnx")]


def export_result(output: Path) -> Any:
    import onnx

    model = onnx.load(output / "network.onnx")
    return {tensor.name: tensor.raw_data for tensor in model.graph.initializer}


def prepare_input(folder: Path) -> None:
    (folder / "release").mkdir()
    test_adience.write_release(folder / "release", size=16)


def prepare_arguments(folder: Path, output: Path) -> list[str]:
    options = [f"--manual_dir={folder / 'release'}", f"--data_dir={output / 'data'}"]
    return ["prepare", "adience", *options]


def prepare_result(output: Path) -> Any:
    return rows_of("adience/faces", output / "data")


def kind(
    name: str,
    write: Callable[[Path], None],
    arguments: Callable[[Path, Path], list[str]],
    result: Callable[[Path], Any],
    *,
    in_place: bool = False,
    sample: int = 2,
) -> Kind:
    def make(folder: Path) -> None:
        base = folder / name
        base.mkdir()
        write(base)
        plan_for(base, arguments, replaces=not in_place)

    chosen = functools.partial(use, arguments=arguments, result=result, in_place=in_place)
    return Kind(name, make, mutate, chosen, compare, sample, warm_up=1, forks=True)


KINDS = {
    each.name: each
    for each in (
        kind("kills.predict", predict_input, predict_arguments, predict_result),
        kind("kills.export", lambda folder: None, export_arguments, export_result),
        kind("kills.prepare", prepare_input, prepare_arguments, prepare_result),
    )
}
