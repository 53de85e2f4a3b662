"""What a head's outputs mean: losses that ignore what is unknown, and probabilities.

Gender is told by a softmax over its classes, or by one sigmoid unit for each, which the reference
report compares. Age is told by a softmax over the age groups ("groups"), or as a number, by a
probability for every year from 0 to `MAX_AGE`: a softmax over the years ("distribution", as in
DEX: Rothe et al., "Deep Expectation of Real and Apparent Age", IJCV 2018), or an ordinal model
("ordinal", see `agenet.models.heads.OrdinalHead`). A distribution over the years answers in any
grouping of them, and learns from exact ages and from ranges of any width by their likelihood.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from agenet.labels import AGE_GROUPS, MAX_AGE, TASK_CLASSES, UNKNOWN, nearest_age_group

CLASS_WEIGHTS = ("none", "balanced")
YEARS = np.arange(MAX_AGE + 1)
_BY_YEAR = ("distribution", "ordinal")
_SMOOTHING_YEARS = 2.0  # standard deviation
# Of years that a range does not set apart nothing is learnt, unless neighbours are alike: the
# logits over years are averaged over this standard deviation. It leaves a Gaussian what it is.
_ALIKE_YEARS = 3.0
# A year between two groups counts for the nearer one, so that none is lost: [years, groups].
_GROUP_OF_YEAR = np.eye(len(AGE_GROUPS), dtype=bool)[
    [nearest_age_group(float(year)) for year in YEARS]
]
# The group that the middle of a range lies in, by the sum of its first and last year.
_GROUP_OF_RANGE = np.array([nearest_age_group(years / 2) for years in range(2 * MAX_AGE + 1)])


def _near(years: float) -> np.ndarray:
    """Gaussian weights of that standard deviation, of sum 1 in every row: [years, years]."""
    weights = np.exp(-0.5 * ((YEARS[:, None] - YEARS) / years) ** 2)
    return weights / weights.sum(1, keepdims=True)


def describe_heads(heads: Mapping[str, str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """What `agenet.models.create_model` wants for the heads: `num_classes` and `ordinal`.

    >>> describe_heads({"age": "ordinal", "gender": "softmax"})
    ({'age': 101, 'gender': 2}, ('age',))
    """
    outputs = {
        task: len(YEARS) if head in _BY_YEAR else len(TASK_CLASSES[task])
        for task, head in heads.items()
    }
    return outputs, tuple(task for task, head in heads.items() if head == "ordinal")


def estimate_age_distribution(age_low: np.ndarray, age_high: np.ndarray) -> np.ndarray:
    """The share of every year of age among people of whom ranges are known.

    Nothing in a range of years says which of them is how likely, and a range such as "70 and more"
    is not spread evenly. The smoothest answer that agrees with the ranges is found by expectation
    maximisation with a smoothing step: Silverman et al., "A Smoothed EM Approach to Indirect
    Estimation Problems", J. R. Statist. Soc. B 52, 1990.

    Args:
        age_low, age_high: integers [N], the first and the last year of each person's range, or
            `UNKNOWN`.

    Returns:
        float64 [101], positive, of sum 1.
    """
    known = age_low != UNKNOWN
    ranges, people = np.unique(
        np.stack([age_low[known], age_high[known]], 1), axis=0, return_counts=True
    )
    inside = (ranges[:, :1] <= YEARS) & (ranges[:, 1:] >= YEARS)
    near = _near(_SMOOTHING_YEARS).T
    shares = np.full(len(YEARS), 1 / len(YEARS))
    for _ in range(200 if len(ranges) else 0):
        within = inside * shares
        told = (people / people.sum()) @ (within / within.sum(1, keepdims=True))
        shares = near @ told
        shares = (shares + 1e-6) / (shares + 1e-6).sum()
    return shares


def known_classes(task: str, head: str, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The class of each example's label, int32 [B].

    It is `UNKNOWN` where the head can learn nothing from an example, for the truth is unknown or
    a row is padding. For a head by year it is the age group of the middle of the range.
    """
    if head in _BY_YEAR:
        low, high = batch["age_low"], batch["age_high"]
        known = low != UNKNOWN
        classes = jnp.asarray(_GROUP_OF_RANGE, jnp.int32)[jnp.where(known, low + high, 0)]
    else:
        classes = batch[task]
        known = classes != UNKNOWN
    return jnp.where(known & batch["mask"], classes, UNKNOWN)


def balanced_weights(classes: np.ndarray, count: int) -> np.ndarray:
    """Weights float32 [count] under which all classes weigh the same, as scikit-learn's "balanced".

    That of a class is the number of examples over `count` times the number of its own.

    Args:
        classes: integers [N], from 0 to `count` - 1, or `UNKNOWN`.
        count: of the classes.
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
    """The losses of all examples.

    The loss is the label's negative log-likelihood; for a probability by year that of the range
    of years that the age is known to lie in; of sigmoid units the mean over them of the binary
    cross-entropy, as in Keras.

    With `smoothing` the label is, at that probability, replaced by one that is drawn from all:
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016. All
    are the classes of a softmax, the years 0 to `MAX_AGE` of a head by year, and the two states
    of each sigmoid unit by itself, as in Keras.

    Args:
        task: "age" or "gender".
        head: one of `HEADS[task]`.
        logits: [B, D] float32, D as `describe_heads` says.
        batch: see `agenet.training.steps`.
        smoothing: from 0 to below 1.

    Returns:
        float32 [B], 0 where `known_classes` is `UNKNOWN`.
    """
    known = known_classes(task, head, batch) != UNKNOWN
    if head == "sigmoid":
        targets = jax.nn.one_hot(jnp.where(known, batch[task], 0), logits.shape[-1])
        targets = targets + smoothing * (0.5 - targets)
        losses = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
    elif head in _BY_YEAR:
        # Of the unknown nothing is asked, of which the gradient is zero.
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
    """Logits [B, D] to `{task: log-probabilities of its classes [B, C]}`.

    Those of sigmoid units are scaled to a sum of one. A head that tells the age by year adds
    `years`, the log-probabilities of 0 to `MAX_AGE` years [B, 101].
    """
    if head in _BY_YEAR:
        years = _log_years(head, logits)
        groups = jax.nn.logsumexp(years[:, :, None], axis=1, where=_GROUP_OF_YEAR)
        return {task: jnp.minimum(groups, 0), "years": years}  # Rounding may bring it above.
    if head == "sigmoid":
        logits = jax.nn.log_sigmoid(logits)
    return {task: jax.nn.log_softmax(logits)}


def _log_years(head: str, logits: jax.Array) -> jax.Array:
    """Log-probabilities of 0 to `MAX_AGE` years [B, 101] of a head by year."""
    if head == "distribution":
        logits = jnp.dot(logits, _near(_ALIKE_YEARS).T, precision="highest")
    return jax.nn.log_softmax(logits)
