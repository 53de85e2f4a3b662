"""Losses and probabilities of each kind of head; unknown labels contribute nothing.

Gender heads are a softmax over the classes, or a sigmoid unit for each class; the reference report
compares the two. Age heads are a softmax over the age groups ("groups") or have a probability for
each year from 0 to `MAX_AGE`: a softmax over years ("distribution", as in DEX: Rothe et al., "Deep
Expectation of Real and Apparent Age", IJCV 2018) or an ordinal model ("ordinal", see
`agenet.models.heads.OrdinalHead`). Probabilities by year give those of any age groups, and learn
from exact ages and from ranges of years through the likelihood.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agenet.labels import AGE_GROUPS, MAX_AGE, TASK_CLASSES, UNKNOWN, nearest_age_group

YEARS = np.arange(MAX_AGE + 1)
BY_YEAR = ("distribution", "ordinal")
_SMOOTHING_YEARS = 2.0  # standard deviation of `estimate_age_distribution`'s smoothing
# Standard deviation of the smoothing of the logits over years. Ranges do not distinguish the years
# within them, so that neighbouring years must share what they learn. A Gaussian, whose logits are
# quadratic, keeps its shape.
_LOGIT_SMOOTHING_YEARS = 3.0
# A year between two groups belongs to the nearer one: bool [years, groups].
_GROUP_OF_YEAR = np.eye(len(AGE_GROUPS), dtype=bool)[
    [nearest_age_group(float(year)) for year in YEARS]
]
# The group of the middle of a range, indexed by the sum of its first and last year.
_GROUP_OF_RANGE = np.array([nearest_age_group(years / 2) for years in range(2 * MAX_AGE + 1)])


def _smoothing_matrix(std_years: float) -> np.ndarray:
    """Gaussian weights [years, years] with rows that sum to 1."""
    weights = np.exp(-0.5 * ((YEARS[:, None] - YEARS) / std_years) ** 2)
    return weights / weights.sum(1, keepdims=True)


def describe_heads(heads: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The arguments `num_classes` and `ordinal` of `agenet.models.create_model`.

    >>> describe_heads({"age": "ordinal", "gender": "softmax"})
    ({'age': 101, 'gender': 2}, ('age',))
    """
    outputs = {
        task: len(YEARS) if head in BY_YEAR else len(TASK_CLASSES[task])
        for task, head in heads.items()
    }
    return outputs, tuple(task for task, head in heads.items() if head == "ordinal")


def estimate_age_distribution(age_low: np.ndarray, age_high: np.ndarray) -> np.ndarray:
    """Estimates the distribution of ages over years from ranges of years.

    It is the smoothest distribution that agrees with the ranges, found by expectation maximisation
    with a smoothing step: Silverman et al., "A Smoothed EM Approach to Indirect Estimation
    Problems", J. R. Statist. Soc. B 52, 1990. A range such as "70 and more" is not uniform.

    Args:
        age_low, age_high: integers [N], the first and the last year of each range, or `UNKNOWN`.

    Returns:
        float64 [101], positive, with a sum of 1.
    """
    known = age_low != UNKNOWN
    ranges, counts = np.unique(
        np.stack([age_low[known], age_high[known]], 1), axis=0, return_counts=True
    )
    inside = (ranges[:, :1] <= YEARS) & (ranges[:, 1:] >= YEARS)
    smoothing = _smoothing_matrix(_SMOOTHING_YEARS).T
    shares = np.full(len(YEARS), 1 / len(YEARS))
    for _ in range(200 if len(ranges) else 0):
        within = inside * shares
        expected = (counts / counts.sum()) @ (within / within.sum(1, keepdims=True))
        shares = smoothing @ expected
        shares = (shares + 1e-6) / (shares + 1e-6).sum()
    return shares


def known_classes(task: str, head: str, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The class of each example's label, int32 [B].

    `UNKNOWN` if the label is unknown or the row is padding. For heads with probabilities by year
    it is the age group of the middle of the label's range.
    """
    if head in BY_YEAR:
        low, high = batch["age_low"], batch["age_high"]
        known = low != UNKNOWN
        classes = jnp.asarray(_GROUP_OF_RANGE, jnp.int32)[jnp.where(known, low + high, 0)]
    else:
        classes = batch[task]
        known = classes != UNKNOWN
    return jnp.where(known & batch["mask"], classes, UNKNOWN)


def balanced_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """Class weights float32 [count], inversely proportional to the classes' frequencies.

    As scikit-learn's "balanced": the number of examples over `count` times that of the class.

    Args:
        classes: integers [N] from 0 to `count` - 1, or `UNKNOWN`.
        count: the number of classes.
    """
    examples = np.bincount(classes[classes != UNKNOWN], minlength=count)
    return (examples.sum() / (count * np.maximum(examples, 1))).astype(np.float32)


def example_losses(
    task: str,
    head: str,
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    smoothing: float = 0.0,
) -> jax.Array:
    """The loss of each example: the negative log-likelihood of its label.

    With probabilities by year it is the likelihood of the label's range of years. With sigmoid
    units it is the mean of their binary cross-entropies, as in Keras.

    Args:
        task: "age" or "gender".
        head: kind of head, see above.
        logits: float32 [B, D], D as in `describe_heads`.
        batch: see `agenet.training.steps`.
        smoothing: label smoothing in [0, 1), the weight of the uniform distribution over classes,
            years, or the two states of each sigmoid unit, as in Keras (Szegedy et al.,
            "Rethinking the Inception Architecture for Computer Vision", CVPR 2016).

    Returns:
        float32 [B], 0 where `known_classes` is `UNKNOWN`.
    """
    known = known_classes(task, head, batch) != UNKNOWN
    if head == "sigmoid":
        targets = jax.nn.one_hot(jnp.where(known, batch[task], 0), logits.shape[-1])
        targets = targets + smoothing * (0.5 - targets)
        losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    elif head in BY_YEAR:
        # For unknown ages the range is all years, whose gradient is zero.
        low = jnp.where(known, batch["age_low"], 0)
        high = jnp.where(known, batch["age_high"], MAX_AGE)
        inside = (low[:, None] <= YEARS) & (high[:, None] >= YEARS)
        log_probs = _log_years(head, logits)
        losses = -jax.nn.logsumexp(log_probs, axis=-1, where=inside)
    else:
        log_probs = jax.nn.log_softmax(logits)
        labels = jnp.where(known, batch[task], 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing and head != "sigmoid":
        losses += smoothing * (-log_probs.mean(-1) - losses)
    return jnp.where(known, losses, 0.0)


def log_probabilities(task: str, head: str, logits: jax.Array) -> dict[str, jax.Array]:
    """Converts logits [B, D] to `{task: log-probabilities of its classes [B, C]}`.

    Probabilities of sigmoid units are normalised to a sum of one. Heads with probabilities by year
    add `years`, the log-probabilities of 0 to `MAX_AGE` years [B, 101].
    """
    if head in BY_YEAR:
        years = _log_years(head, logits)
        groups = jax.nn.logsumexp(years[:, :, None], axis=1, where=_GROUP_OF_YEAR)
        return {task: jnp.minimum(groups, 0), "years": years}  # Floating-point error can exceed 0.
    if head == "sigmoid":
        logits = jax.nn.log_sigmoid(logits)
    return {task: jax.nn.log_softmax(logits)}


def _log_years(head: str, logits: jax.Array) -> jax.Array:
    """Log-probabilities of 0 to `MAX_AGE` years [B, 101]."""
    if head == "distribution":
        logits = jnp.dot(logits, _smoothing_matrix(_LOGIT_SMOOTHING_YEARS).T, precision="highest")
    return jax.nn.log_softmax(logits)
