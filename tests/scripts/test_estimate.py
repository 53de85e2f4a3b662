"""Estimates follow from counts and published rates by the roofline's arithmetic."""

import pytest

from agenet.runs.config import parse_config
from configs import default
from scripts import estimate
from scripts.estimate import GB, Counts, Machine

MACHINE = Machine("8 of them", 8, 100e12, 1000 * GB, 10 * GB, 100 * GB, cores=16)
COUNTS = Counts(5e9, 10e6, 20e6, parameters=10**6, trained=10**6, size=100)


@pytest.mark.parametrize(
    ("changes", "batch", "rate", "limit"),
    [
        ({"flops": 5e12}, 10, "80", "arithmetic"),  # 50 TFLOP at 50 TFLOP/s: a second.
        ({"flops": 1}, 100, "389,105", "memory traffic"),  # 1.028 GB at 500 GB/s.
        ({"trained": 10**9, "traffic": 0}, 1, "57", "all-reduce"),  # 7 GB at 50 GB/s.
        ({"flops": 1, "traffic": 0, "trained": 0}, 10, "80,000", "host"),
        # 210 MB at 50 GB/s.
        ({"flops": 1, "traffic": 0, "trained": 0, "size": 1000}, 10, "19,048", "input"),
    ],
)
def test_limits(
    changes: dict[str, float], batch: int, rate: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "DECODED", 1000.0)
    counts = Counts(**{**vars(COUNTS), **changes})
    found = estimate.estimate(counts, MACHINE, batch, 1000, 1000)
    assert found[0] == rate and found[2] == limit


def test_images_that_fit_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "DECODED", 1000.0)
    cheap = Counts(1, 0, 0, parameters=0, trained=0, size=100)
    few = estimate.estimate(cheap, MACHINE, 10, 16_000, 16_000)
    assert few[1:3] == ["2.0 s", "host"]  # A second of decoding, and one of steps.
    many = estimate.estimate(cheap, MACHINE, 10, 16_000_000, 16_000_000)
    assert many[0] == "16,000" and many[2:] == ["input", "0.0 of 10", "streamed"]
    assert many[1] == "1 h 23 min"


def test_table_has_each_training_on_each_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(estimate, "count", lambda *_: COUNTS)
    estimate.main([])
    output = capsys.readouterr().out
    assert all(output.count(f" {machine.name} ") == 5 for machine in estimate.MACHINES)


def test_counts_of_a_known_network() -> None:
    config = default.get_config()
    config.model.name, config.input.crop_size = "resnet18", 224
    parsed = parse_config(config.to_dict())
    counts = estimate.count(parsed, frozen=False)
    forward = estimate.count(parsed, frozen=True)
    # 1.8 G multiply-adds (He et al., 2016), two operations each, thrice in training.
    known = 2 * 1.8e9
    assert forward.flops == pytest.approx(known, rel=0.1)
    assert counts.flops == pytest.approx(3 * known, rel=0.15)
    assert counts.parameters == counts.trained == pytest.approx(11.2e6, rel=0.01)
    assert counts.state == 12 * counts.parameters and forward.state == 4 * counts.parameters
    assert counts.traffic > forward.traffic > 0
