"""Two processes of four devices each give the results of one device, and end together."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agenet.data.records import Records
from agenet.distributed.coordination import all_gather, broadcast
from agenet.distributed.processes import distributed_session, parse_processes
from agenet.errors import UserError
from agenet.runs.config import RunConfig
from tests.conftest import ROOT, run_program
from tests.tiny import result, run_process, run_processes, tiny_config


def config(**fields: Any) -> RunConfig:
    # A bias before batch norm has only floating-point errors as gradient, which Adam amplifies.
    return tiny_config(optimizer__name="sgd", **fields)


@pytest.fixture(scope="module")
def records(make_records: Callable[..., Records]) -> Records:
    return make_records()


@pytest.fixture(scope="module")
def alone(records: Records, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert run_process(workdir, records, config())[0] == 0
    return result(workdir)


def run_pair(*runs: tuple[Path, Records, dict[str, Any], dict[str, Any]]) -> list[tuple[int, str]]:
    """Runs two processes with config fields and events; returns their exit codes and stderr."""
    address = f"127.0.0.1:{free_port()}"
    return run_processes(
        *(
            (
                workdir,
                records,
                config(**fields),
                # Compiling takes longer when other tests compile, too.
                {"processes": f"{address},2,{index}", "env": {"AGENET_LOST_TIMEOUT": "5"}} | events,
            )
            for index, (workdir, records, fields, events) in enumerate(runs)
        )
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Damaged(Records):
    """Records with broken images that only decoding reveals."""

    def checksum(self) -> str:
        return "of the intact images"


def without(records: Records, rows: slice) -> Records:
    images = [*records.images]
    images[rows] = [bytes(len(image)) for image in images[rows]]
    return Damaged(**vars(records) | {"images": images})


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares results up to floating-point error."""
    assert found.keys() == expected.keys() and len(found) > 20
    for name, value in expected.items():
        if isinstance(value, bytes):
            dtype = "i4" if re.search(r"step|count", name) else "f4"
            ours, theirs = (np.frombuffer(each, dtype) for each in (found[name], value))
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
        elif name == "rows":
            assert [row.keys() for row in found["rows"]] == [row.keys() for row in value]
            for ours, theirs in zip(found["rows"], value, strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5)
        else:
            assert found[name] == value


@pytest.mark.slow
def test_two_processes_equal_one(records: Records, alone: dict[str, Any], tmp_path: Path) -> None:
    """Neither process has the images that the other one's devices hold."""
    first, second = without(records, slice(100, 200)), without(records, slice(100))
    ended = run_pair((tmp_path, first, {}, {}), (tmp_path, second, {}, {}))
    assert [code for code, _ in ended] == [0, 0], ended
    assert_alike(result(tmp_path), alone)
    assert not ended[1][1]  # Only the first process logs and writes.
    assert "8 x cpu of 2 processes" in ended[0][1]
    assert len(re.findall(r"valid +20 ", (tmp_path / "train.log").read_text())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "parameters.txt",
        "train.log",
    ]


@pytest.mark.slow
def test_killed_resumed_alone_stopped_and_resumed(
    records: Records, alone: dict[str, Any], tmp_path: Path
) -> None:
    two = [(tmp_path, records, {}, {})] * 2
    killed = run_pair(two[0], (tmp_path, records, {}, {"kill_with": 9}))
    assert [code for code, _ in killed] == [1, -signal.SIGKILL], killed
    line = "process 1 of 2 has sent no heartbeat for 5 s: it was killed, or its machine failed"
    for message in (killed[0][1], (tmp_path / "train.log").read_text()):
        assert f"error: {line}" in message.splitlines()[-1]
    assert "Traceback" not in killed[0][1]

    code, message = run_process(tmp_path, records, config(), stop_at=5)
    assert code == 0 and "resuming from step 5 of 20" in message
    assert "SIGTERM: stopped and saved at step 8 of 20" in message

    stopped = run_pair(two[0], (tmp_path, records, {}, {"stop_at": 3}))
    assert [code for code, _ in stopped] == [0, 0], stopped
    message = stopped[0][1]
    assert "resuming from step 8 of 20" in message and "run the same command again" in message
    step = re.search(r"SIGTERM: stopped and saved at step (\d+) of 20", message)
    assert step and 11 <= int(step[1]) <= 11 + 3
    assert not stopped[1][1]

    assert run_process(tmp_path, records, config())[0] == 0
    assert_alike(result(tmp_path), alone)


@pytest.mark.slow
def test_errors_of_one_process_end_all(records: Records, tmp_path: Path) -> None:
    for change, message in {
        "image": r"1 of 100 prepared images do not decode \(rows 150\)",
        "fields": "all processes must have the same settings and data: config.log_every: 4 steps",
        "workdir": "is another one for process 1 than for process 0",
        "command": "settings and data: command: training there, dry run now",
    }.items():
        workdir = tmp_path / "b" if change == "workdir" else tmp_path / "a"
        fields = {"log_every": "3 steps"} if change == "fields" else {}
        rows = slice(150, 151 if change == "image" else 150)
        events = {"dry_run": True} if change == "command" else {}
        whole, broken = without(records, slice(0)), without(records, rows)
        ended = run_pair((tmp_path / "a", whole, {}, {}), (workdir, broken, fields, events))
        assert [code for code, _ in ended] == [1, 1], ended
        assert all(re.search(message, each) and "Traceback" not in each for _, each in ended), ended
        if change == "image":
            assert "process 1 of 2: 1 of 100" in ended[0][1]


@pytest.mark.slow
def test_coordinator_is_killed(records: Records, tmp_path: Path) -> None:
    ended = run_pair((tmp_path, records, {}, {"kill_with": 1}), (tmp_path, records, {}, {}))
    assert [code for code, _ in ended] == [-signal.SIGKILL, 1], ended
    last = ended[1][1].splitlines()[-1]
    assert last.startswith("error: process 1 of 2 has lost process 0, the coordinator at 127.0.0.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)]
)
def test_signal_before_training_ends_all(
    records: Records, tmp_path: Path, index: int, number: signal.Signals
) -> None:
    events: list[dict[str, Any]] = [{}, {}]
    events[index] = {"end_with": number}
    ended = run_pair(*((tmp_path, records, {}, each) for each in events))
    assert [code for code, _ in ended][index] == 128 + number, ended
    assert "interrupted" in ended[index][1] or "SIGTERM: stopped" in ended[index][1]
    code, message = ended[1 - index]
    name = "SIGTERM" if number == signal.SIGTERM else "KeyboardInterrupt"
    assert code == 1 and re.fullmatch(rf".*error: process {index} of 2: {name}\n", message), message


def test_sigterm_before_training(records: Records, tmp_path: Path) -> None:
    code, message = run_process(tmp_path, records, config(), end_with=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    line = "[0-9:]+ SIGTERM: stopped; to resume, run the same command again\n"
    assert re.fullmatch(line, message)
    assert "Traceback" not in (tmp_path / "train.log").read_text()


def joining(processes: str) -> str:
    """A program that only joins the other processes."""
    return f"""
from agenet.errors import one_line_errors
from agenet.distributed.processes import distributed_session
print(flush=True)
with one_line_errors(), distributed_session("{processes}"):
    pass
"""


def test_interrupt_while_waiting_for_others() -> None:
    command = [sys.executable, "-c", joining(f"127.0.0.1:{free_port()},2,0")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


def test_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        message = run_program("-c", joining(f"{address},2,0"), fails=True)
    line = f"error: process 0 cannot serve {address} (Address already in use): choose another port"
    assert message.startswith(f"\n{line}") and message.count("\n") == 2


def test_port_is_taken_under_slurm() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
        slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": port}
        message = run_program("-c", joining("auto"), fails=True, **slurm)
    assert f"error: process 0 cannot serve 127.0.0.1:{port} (" in message


@pytest.mark.parametrize(
    ("index", "message"), [(1, "has not answered for 1 s"), (0, "have joined the coordinator")]
)
def test_missing_processes(records: Records, tmp_path: Path, index: int, message: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    events = {"processes": f"{address},2,{index}", "env": {"AGENET_START_TIMEOUT": "1"}}
    code, stderr = run_process(tmp_path, records, config(), **events)
    assert code == 1
    assert re.fullmatch(f"error: .*{message}.*\n", stderr) and address in stderr


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ("two", 'must be "auto" or "HOST:PORT,COUNT,INDEX"'),
        ("host,2,0", 'must be "auto" or'),
        ("host:1234,2", 'must be "auto" or'),
        ("host:1234,2,-1", 'must be "auto" or'),
        ("host:1234,2,2", "the first is 0 and the last 1, none is 2"),
        ("host:0,2,0", "ports go from 1 to 65535, not to 0"),
        ("host:65536,2,0", "not to 65536"),
    ],
)
def test_malformed_flag(processes: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_processes(processes)


def test_malformed_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENET_LOST_TIMEOUT", "soon")
    with (
        pytest.raises(UserError, match="AGENET_LOST_TIMEOUT=soon must be"),
        distributed_session("auto"),
    ):
        pass


def test_one_process() -> None:
    with distributed_session(""):
        assert broadcast({"a": (1,)}) == {"a": (1,)} and all_gather(2) == [2]
