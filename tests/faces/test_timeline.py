import pytest

from agenet.faces.timeline import LONGEST_GAP, Timeline


def times(*stamps: float | None, rate: float = 10.0) -> list[float]:
    timeline = Timeline(rate)
    return [round(timeline.next(stamp), 6) for stamp in stamps]


def test_times_count_from_the_first_frame() -> None:
    assert times(7.0, 7.5, 9.0) == [0, 0.5, 2.0]
    assert times(-3.0, -2.9, 0.0) == [0, 0.1, 3.0]
    assert times(0.0, 5.0, 10.0) == [0, 5, 10]


def test_missing_timestamps_follow_the_rate() -> None:
    assert times(None, None, None) == [0, 0.1, 0.2]
    assert times(None, None, 4.0, 4.1) == [0, 0.1, 0.2, 0.3]
    assert times(1.0, None, 1.2, None) == [0, 0.1, 0.2, 0.3]


def test_repeated_timestamps_do_not_delay_what_follows() -> None:
    assert times(0.0, 0.1, 0.1, 0.2, 0.3) == [0, 0.1, 0.125, 0.2, 0.3]


def test_timestamps_that_stand_still_follow_the_rate() -> None:
    stood = times(*[2.0] * 30)
    assert stood == sorted(set(stood))
    assert stood[-1] == pytest.approx(2.7, abs=0.1)


@pytest.mark.parametrize("start", [0.0, -500.0, 1e9])
def test_timestamps_that_start_anew(start: float) -> None:
    joined = times(100.0, 100.1, 100.2, start, start + 0.1, start + 0.4)
    assert joined == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.7])


def test_long_gaps_are_kept() -> None:
    assert times(0.0, LONGEST_GAP) == [0, LONGEST_GAP]
    assert times(0.0, LONGEST_GAP + 1) == [0, 0.1]
