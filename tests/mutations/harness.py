"""Runs cases in a few processes, with limits on time and memory, and judges what they did."""

import contextlib
import os
import resource
import shutil
import tempfile
import threading
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tests.mutations.command import process_context
from tests.mutations.judge import BAD, FINE, HOME, INPUT, ONE_LINE, OUTPUT, TMP, Verdict, judge
from tests.mutations.kind import Change, Kind

ADDRESS_SPACE = 12 << 30  # bytes that a process may take at most: a guard, not the limit


def find_kind(name: str) -> Kind:
    """A kind by its name, "weights" or "runs.resume": KINDS of the module of that name."""
    kinds: dict[str, Kind] = import_module(f"tests.mutations.{name.partition('.')[0]}").KINDS
    return kinds[name]


def generator(kind: str, seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])


def _fresh(scratch: Path, good: Path | None) -> None:
    for path in scratch.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in (OUTPUT, HOME, TMP):
        (scratch / name).mkdir()
    if good is not None:
        shutil.copytree(good, scratch / INPUT, symlinks=True)


class Bench:
    """Makes, damages and uses the inputs of kinds, one after the other, in a scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._rights: dict[Path, Any] = {}

    def make(self, kind: Kind, good: Path) -> Verdict:
        """Makes the good inputs of a kind."""
        _fresh(self.scratch, None)
        kind.make(good)
        return Verdict(FINE)

    def damage(self, kind: Kind, good: Path, seed: int, number: int) -> tuple[str, Change]:
        """Puts a damaged input into the scratch folder; returns its base and what was done."""
        rng = generator(kind.name, seed, number)
        bases = sorted(path for path in good.iterdir() if path.is_dir())
        base = bases[number % len(bases)]
        self._base = base
        if base not in self._rights:
            for _ in range(kind.warm_up):
                _fresh(self.scratch, base)
                self._rights[base] = kind.use(self.scratch / INPUT, self.scratch / OUTPUT)
        _fresh(self.scratch, base)
        return base.name, kind.mutate(self.scratch / INPUT, rng)

    def judge(self, kind: Kind, change: Change) -> Verdict:
        return judge(kind, self.scratch, change, self._rights[self._base])


def _serve(connection: Any, scratch: Path) -> None:
    """Does what the connection asks for, in a process of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, hard))
    os.environ |= {"HOME": str(scratch / HOME), "TMPDIR": str(scratch / TMP)}
    os.environ |= {"CANARY": str(scratch / "canary"), "AGENET_CACHE": str(scratch.parent / "cache")}
    os.environ["AGENET_OFFLINE"] = "1"
    tempfile.tempdir = None
    tqdm.set_lock(threading.RLock())  # Its own is a semaphore, which a kill leaves behind.
    bench = Bench(scratch)
    while True:
        try:
            name, good, seed, number = connection.recv()
        except (EOFError, ConnectionError):  # The program is gone.
            return
        try:
            kind = find_kind(name)
            if number is None:
                verdict = bench.make(kind, good)
            else:
                base, change = bench.damage(kind, good, seed, number)
                connection.send(f"{base}: {change.what}")
                verdict = bench.judge(kind, change)
        except BaseException:
            verdict = Verdict("broken", traceback.format_exc())
        connection.send(verdict)


class Worker:
    """A process that runs one case after the other, and is replaced if it hangs or dies."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self._process: Any = None
        self._bench = Bench(scratch)  # of the kinds that start processes themselves

    def ask(self, kind: str, good: Path, seed: int, number: int | None) -> Verdict:
        """Makes the good inputs of a kind (`number` is None) or runs one of its cases."""
        if (found := find_kind(kind)).forks:
            if number is None:
                return self._bench.make(found, good)
            base, change = self._bench.damage(found, good, seed, number)
            verdict = self._bench.judge(found, change)
            return replace(verdict, change=f"{base}: {change.what}")
        if self._process is None:
            context = process_context()
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.scratch))
            self._process.start()
            theirs.close()
        self._connection.send((kind, good, seed, number))
        change, seconds = "", 300.0  # for imports and good inputs
        while True:
            try:
                if not self._connection.poll(seconds):
                    verdict = Verdict(BAD, f"hangs: stopped after {seconds:g} s", change)
                    break
                answer = self._connection.recv()
            except (EOFError, ConnectionError):
                self._process.join(5)
                verdict = Verdict(BAD, f"the process died: {self._process.exitcode}", change)
                break
            if isinstance(answer, Verdict):
                return replace(answer, change=change)
            change, seconds = answer, found.seconds
        self.stop()
        return verdict

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def run_cases(
    kinds: Sequence[str],
    folder: Path,
    *,
    seed: int,
    numbers: Callable[[str], Sequence[int]],
    keep: Path | None = None,
    processes: int = 2,
    report: Callable[[str, int, Verdict], None] = lambda kind, number, verdict: None,
) -> dict[str, list[tuple[int, Verdict]]]:
    """Runs cases of several kinds, and copies bad inputs to `keep`.

    Args:
        kinds: their names.
        folder: for good inputs and scratch.
        seed: of all cases.
        numbers: the numbers of the cases of a kind.
        keep: folder for bad inputs.
        processes: number of them.
        report: called after each case.
    """
    results: dict[str, list[tuple[int, Verdict]]] = {kind: [] for kind in kinds}
    tasks = iter([(kind, number) for kind in kinds for number in numbers(kind)])
    lock, made = threading.Lock(), {kind: threading.Lock() for kind in kinds}

    def work(index: int) -> None:
        worker = Worker(folder / f"scratch{index}")
        try:
            while True:
                with lock:
                    kind, number = next(tasks, ("", 0))
                if not kind:
                    return
                good = folder / "good" / kind
                with made[kind]:
                    if not good.exists():
                        good.mkdir(parents=True)
                        verdict = worker.ask(kind, good, seed, None)
                        if verdict.word != FINE:
                            raise RuntimeError(f"{kind}: {verdict.detail}")
                verdict = worker.ask(kind, good, seed, number)
                if not verdict.change:
                    raise RuntimeError(f"{kind} {number}: {verdict.detail}")
                if verdict.word not in (FINE, ONE_LINE) and keep:
                    _keep(worker.scratch / INPUT, keep / f"{kind}-{number}", verdict)
                with lock:
                    results[kind].append((number, verdict))
                    report(kind, number, verdict)
        finally:
            worker.stop()

    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def _keep(source: Path, place: Path, verdict: Verdict) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with contextlib.suppress(shutil.Error, OSError):  # pipes
        shutil.copytree(source, place / INPUT, symlinks=True)
    (place / "what.txt").write_text(f"{verdict.change}\n{verdict.detail}\n", errors="replace")
