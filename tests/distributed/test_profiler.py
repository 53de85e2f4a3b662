"""The trace of a few steps is complete and readable."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jax.profiler import ProfileData

from agenet.data.records import Records
from agenet.distributed.profiler import Window, parse_window
from agenet.errors import UserError
from agenet.runs import launch
from scripts import read_profile
from tests.tiny import result, tiny_config, use_records


def test_trace(
    make_records: Callable[..., Records],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    use_records(make_records(), monkeypatch.setattr)
    launch.launch(tiny_config(), tmp_path / "plain", "command")
    workdir = tmp_path / "run"
    launch.launch(tiny_config(), workdir, "command", Window(2, 3))
    assert f"profile: from step 2 in {workdir}/profile" in capsys.readouterr().err
    assert result(workdir) == result(tmp_path / "plain")
    (path,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    steps = [
        (event.name, dict(event.stats)["step_num"])
        for plane in ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if "step_num" in dict(event.stats)
    ]
    assert steps == [("train", 2), ("train", 3), ("train", 4)]

    trace = read_profile.read_trace(path)
    kinds = {kind for kind, _ in trace.costs}
    assert {"conv_general_dilated", "conv_general_dilated, backward"} <= kinds
    assert {place for kind, place in trace.costs if kind == "conv_general_dilated"} == {
        "Classifier.features/backbone/conv"
    }
    read_profile.main([str(workdir), "--rows=3"])
    message = capsys.readouterr().out
    assert message.startswith("3 steps, ") and message.count("|\n") == 2 * 6 and " more " in message

    # The run resumes after step 20: no steps are left to trace.
    launch.launch(tiny_config(), workdir, "command", Window(5, 5))
    assert "no profile: it starts after 5 steps, and there were only 0" in capsys.readouterr().err


def test_no_trace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no trace: run agenet.main with --profile"):
        read_profile.main([str(tmp_path)])


def test_windows() -> None:
    assert parse_window("true") == Window(5, 5)
    assert parse_window("false") is None
    assert parse_window("100:20") == Window(100, 20)
    for text in ("5", "5:0", "a:b", ""):
        with pytest.raises(UserError, match=r"is not FIRST:COUNT"):
            parse_window(text)
