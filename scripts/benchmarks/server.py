"""Measures how many images per second `agenet serve` answers, and how soon.

python scripts/benchmarks/server.py [--clients=1,4,16,64] [--image=photo.jpg]

The load comes from `hey`, a program of Debian's package of that name. The servers take turns.
"""

import argparse
import contextlib
import csv
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from agenet.errors import ArgumentParser, UserError, one_line_errors
from agenet.frameworks.timing import Figures
from agenet.runs.machine import processor_name
from agenet.weights.bundled import DEFAULT, find_weights
from scripts.benchmarks.faces import compose_frames, draw_images, found_faces
from scripts.benchmarks.tables import cell, print_table, split_names, write_json
from scripts.benchmarks.turns import log

ROOT = Path(__file__).resolve().parents[2]
_QUEUE = 256  # images that may wait: all clients' at least
_START_SECONDS = 120.0


class Contestant:
    """A server in a process of its own.

    Args:
        name: for the table.
        command: that starts it.
        url: that takes images.
    """

    def __init__(self, name: str, command: Sequence[str], url: str) -> None:
        self.name, self.url = name, url
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe would fill up
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def wait(self, image: Path) -> None:
        """Waits for its first answer.

        Raises:
            UserError: it does not start.
        """
        deadline = time.monotonic() + _START_SECONDS
        host, port = self.url.split("/")[2].split(":")
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                load(self.url, image, clients=1, seconds=0.1)
                return
            time.sleep(0.1)
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        raise UserError(f"{self.name} does not start: {lines[-1][:300] if lines else 'no answer'}")

    def resident_bytes(self) -> int:
        """What its processes take together; shared pages count once."""
        total, waiting = 0, [self._process.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += 1024 * int(text.partition("\nPss:")[2].split()[0])
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
        return total

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def load(url: str, image: Path, *, clients: int, seconds: float) -> Figures:
    """Sends an image again and again: images per second, and percentiles of the time in ms.

    Raises:
        UserError: an answer is not 200.
    """
    command = ["hey", "-z", f"{seconds}s", "-c", str(clients), "-m", "POST", "-t", "60"]
    command += ["-T", "image/jpeg", "-D", str(image), "-o", "csv", url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    statuses = {row["status-code"] for row in rows}
    if statuses != {"200"}:
        raise UserError(f"{url} answers with {', '.join(sorted(statuses)) or 'nothing'}")
    times = np.array([float(row["response-time"]) for row in rows])
    # Answers come after the last of the time, too.
    end = max(float(row["offset"]) + float(row["response-time"]) for row in rows)
    p50, p99 = 1000 * np.percentile(times, [50, 99])
    return {"rate": len(times) / end, "p50": float(p50), "p99": float(p99), "answers": len(times)}


def library_rate(image: bytes, weights: str, seconds: float, threads: int) -> float:
    """Images per second of `Predictor` on the same file, without a server, in so many threads."""
    from agenet.faces.image_io import read_image_bytes
    from agenet.inference.predictor import Predictor

    predictor = Predictor.load(weights, threads=None if threads == 1 else 1)

    def work(until: float) -> int:
        count = 0
        while time.monotonic() < until or not count:
            predictor.predict_faces(read_image_bytes(image, to_detect=True).pixels)
            count += 1
        return count

    work(0)
    with ThreadPoolExecutor(threads) as pool:
        start = time.monotonic()
        count = sum(pool.map(work, [start + seconds] * threads))
        return count / (time.monotonic() - start)


@contextlib.contextmanager
def contestants(weights: str, image: Path, folder: Path) -> Iterator[list[Contestant]]:
    """The servers that can be had, started."""
    with contextlib.ExitStack() as stack:
        first, second = free_ports(2)
        serve = ["-m", "agenet.cli", "serve", f"--port={first}", f"--model={weights}"]
        serve += [f"--queue={_QUEUE}", "--max-connections=500"]
        running = [Contestant("agenet", serve, f"http://127.0.0.1:{first}/v1/predict")]
        stack.callback(running[0].stop)
        try:
            import fastapi  # noqa: F401
        except ImportError:
            log("fastapi is not installed, and is left out: pip install fastapi")
        else:
            graph = folder / "network.onnx"
            export(weights, graph)
            peer = ["-m", "scripts.benchmarks.server_peer", str(graph), str(second)]
            running.append(Contestant("fastapi", peer, f"http://127.0.0.1:{second}/predict"))
            stack.callback(running[1].stop)
        for each in running:
            each.wait(image)
        yield running


def export(weights: str, path: Path) -> None:
    from agenet.export import to_onnx
    from agenet.inference.network import load_network

    network = load_network(find_weights(weights))
    path.write_bytes(to_onnx(network.make_forward(), network.stored_size))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


def write_frame(path: Path) -> None:
    """Writes a JPEG of 640x480 pixels that shows one drawn face."""
    face = found_faces(draw_images(16), "auto", 1)
    frame = compose_frames(face, 1)[0]
    cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table with a row for each number of clients.

    Raises:
        UserError: an option is wrong, there is no `hey`, or a server does not start.
    """
    args = parse(arguments)
    result: Figures = {"processor": processor_name(), "load": os.getloadavg()[0], "clients": {}}
    with tempfile.TemporaryDirectory() as name:
        image = args.image or Path(name) / "frame.jpg"
        if not args.image:
            write_frame(image)
        content = image.read_bytes()
        for threads in sorted({1, os.cpu_count() or 1}):
            log(f"the library, {threads} Python threads")
            rate = library_rate(content, args.model, args.seconds, threads)
            result[f"library_{threads}"] = rate
        with contestants(args.model, image, Path(name)) as running:
            start = {each.name: each.resident_bytes() for each in running}
            for clients in args.clients:
                log(f"{clients} clients")
                result["clients"][clients] = measure(running, image, clients, args)
            result["bytes"] = {
                each.name: [start[each.name], each.resident_bytes()] for each in running
            }
    show(result, args)
    write_json(args, result)


def measure(
    running: Sequence[Contestant], image: Path, clients: int, args: argparse.Namespace
) -> Figures:
    """The median round of each server, by its rate."""
    rounds: dict[str, list[Figures]] = {each.name: [] for each in running}
    for _ in range(args.rounds):
        for each in running:
            found = load(each.url, image, clients=clients, seconds=args.seconds)
            rounds[each.name].append(found)
    return {
        name: sorted(found, key=lambda one: one["rate"])[len(found) // 2]
        for name, found in rounds.items()
    }


def show(result: Figures, args: argparse.Namespace) -> None:
    print(f"{result['processor']}; other programs' load {result['load']:.1f}\n")
    names = list(result["bytes"])
    header = [text for name in names for text in (f"{name}, images/s", "p50, ms", "p99, ms")]
    rows = {
        str(clients): [cell(found[name], key) for name in names for key in ("rate", "p50", "p99")]
        for clients, found in result["clients"].items()
    }
    print_table(header, rows, "clients")
    print()
    for key, rate in result.items():
        if key.startswith("library_"):
            print(
                f"- the library, {key.removeprefix('library_')} Python threads: {rate:.1f} images/s"
            )
    for name, (before, after) in result["bytes"].items():
        print(f"- {name}: {before / 1e6:.0f} MB at the start, {after / 1e6:.0f} MB at the end")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Throughput and latency of agenet serve and of a plain FastAPI program. "
        "About four minutes."
    )
    add = parser.add_argument
    add("--clients", default="1,2,4,8,16,32,64", help="numbers of them (default: %(default)s)")
    add("--rounds", type=int, default=3, help="turns of each server (default: 3)")
    add("--seconds", type=float, default=4.0, help="length of a turn (default: 4)")
    add("--model", default=DEFAULT, help="weights (default: agenet's own)")
    add("--image", type=Path, help="a JPEG file (default: 640x480 with a drawn face)")
    add("--json", type=Path, help="file for all figures")
    args = parser.parse_args(arguments)
    if not shutil.which("hey"):
        raise UserError("the load comes from hey, which is not installed: apt-get install hey")
    names = split_names(args.clients)
    if not names or not all(name.isdecimal() and 1 <= int(name) <= _QUEUE for name in names):
        raise UserError(f"--clients={args.clients}: give numbers from 1 to {_QUEUE}, as in 1,8,64")
    args.clients = list(map(int, names))
    if args.rounds < 1 or args.seconds <= 0:
        raise UserError("--rounds and --seconds must be positive")
    if args.image and not args.image.is_file():
        raise UserError(f"--image: there is no file {args.image}")
    return args


if __name__ == "__main__":
    with one_line_errors():
        main()
