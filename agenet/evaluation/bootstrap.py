"""Bootstrap intervals of metrics, which resample subjects.

The images of one subject are alike, so a subject is drawn with all of its images or not at all
(Efron, "Bootstrap Methods", 1979; Field & Welsh, "Bootstrapping Clustered Data", 2007). The draws
depend on nothing but the number of subjects: two runs that are tested on the same faces are
resampled alike.
"""

from collections.abc import Callable, Mapping

import numpy as np

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
# The percentiles of fewer subjects than this lie far too close together.
MIN_SUBJECTS = 10
# The expected calibration error of few faces comes out too large, and of resamples, which hold
# fewer distinct faces, even more: percentiles would not cover it.
_WITHOUT_INTERVAL = ("calibration_error",)

EXPLAINED = (
    f"Intervals: {100 * LEVEL:.0f} % percentiles of {RESAMPLES:,} bootstrap resamples of subjects, "
    "not of images, since the images of one subject are alike. They show how much a result depends "
    "on which subjects were tested, but not how much another training run would change it. No "
    f"interval: fewer than {MIN_SUBJECTS} subjects, or a metric that is undefined in too many "
    "resamples, or the calibration error, which comes out too large for few faces and in resamples."
)

# From weights [R, P] of P subjects to the value of each metric [R], nan where it is undefined.
WeightedMetrics = Callable[[np.ndarray], dict[str, np.ndarray]]
Values = dict[str, float | None]
Intervals = dict[str, list[float] | None]


def estimate_with_intervals(metrics: WeightedMetrics, subjects: int) -> tuple[Values, Intervals]:
    """The metrics with every subject counted once, and their intervals.

    Args:
        metrics: of any weighting of the subjects.
        subjects: how many there are, P.

    Returns:
        The values, and for each [low, high], the middle `LEVEL` of `RESAMPLES` resamples; None for
        the calibration error, for undefined values, of fewer than `MIN_SUBJECTS` subjects, and
        where more than one resample in twenty is undefined.
    """
    once = metrics(np.ones((1, subjects)))
    values = {name: number_or_none(value[0]) for name, value in once.items()}
    if subjects < MIN_SUBJECTS:
        return values, dict.fromkeys(values)
    rng = np.random.default_rng(SEED)
    # A few at a time: all weights of ten thousand subjects would fill 80 MB.
    parts = [metrics(_draw(rng, 100, subjects)) for _ in range(RESAMPLES // 100)]
    intervals: Intervals = {}
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    for name, value in values.items():
        drawn = np.concatenate([part[name] for part in parts])
        drawn = drawn[np.isfinite(drawn)]
        enough = (
            value is not None and name not in _WITHOUT_INTERVAL and len(drawn) >= 0.95 * RESAMPLES
        )
        intervals[name] = np.percentile(drawn, tails).tolist() if enough else None
    return values, intervals


def weighted_means(values: Mapping[str, np.ndarray], subject: np.ndarray) -> WeightedMetrics:
    """The means of each of the values [N] over faces, `subject` [N] being places among P."""
    sums = np.stack([np.bincount(subject, v) for v in (*values.values(), subject >= 0)], axis=1)

    def metrics(weights: np.ndarray) -> dict[str, np.ndarray]:
        *totals, count = (weights @ sums).T
        return {name: divide(total, count) for name, total in zip(values, totals, strict=True)}

    return metrics


def tally(
    row: np.ndarray, column: np.ndarray, shape: tuple[int, ...], values: np.ndarray | None = None
) -> np.ndarray:
    """Sums of values [N], or counts, in each cell of a table, float64."""
    cells = row * shape[1] + column
    return np.bincount(cells, values, shape[0] * shape[1]).reshape(shape).astype(np.float64)


def divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Quotients [R], nan where the count is 0."""
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def number_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _draw(rng: np.random.Generator, resamples: int, subjects: int) -> np.ndarray:
    """How often each subject is drawn [R, P] where as many are drawn as there are."""
    drawn = rng.integers(subjects, size=(resamples, subjects))
    rows = np.broadcast_to(np.arange(resamples)[:, None], drawn.shape)
    return tally(rows.ravel(), drawn.ravel(), drawn.shape)
