"""Turns a network's log-probabilities into predictions of age and gender."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agenet.errors import UserError
from agenet.faces.ages import describe_years, parse_groups
from agenet.faces.face import Prediction
from agenet.labels import AGE_GROUPS, GENDERS
from agenet.weights.spec import WeightsSpec


class Postprocess:
    """Turns log-probabilities into predictions.

    Args:
        spec: of the network's weights.
        age_groups: the age groups to predict, such as ["0-17", "18-64", "65-100"]; by default
            `agenet.labels.AGE_GROUPS`. A year between two groups counts towards the nearer one.

    Raises:
        UserError: the groups are invalid, or the network predicts only its own age groups.
    """

    def __init__(self, spec: WeightsSpec, age_groups: Sequence[str] = ()) -> None:
        self._by_year = spec.heads.get("age") in ("distribution", "ordinal")
        self._groups = tuple(age_groups) or AGE_GROUPS
        if age_groups and not self._by_year:
            raise UserError("this network predicts its own age groups only, not years")
        if self._by_year:
            parse_groups(self._groups)  # A mistake shows at once.

    def __call__(self, log_probs: Mapping[str, np.ndarray]) -> list[Prediction]:
        """Turns log-probabilities {task: [B, C]} into B predictions."""
        probabilities = {
            task: np.exp(values.astype(np.float64)) for task, values in log_probs.items()
        }
        predictions = []
        for row in range(len(next(iter(probabilities.values())))):
            fields: dict[str, Any] = {}
            if "age" in probabilities:
                groups = probabilities["age"][row]
                if self._by_year:
                    fields |= describe_years(probabilities["years"][row], self._groups)
                else:
                    groups = groups / groups.sum()
                    fields["age_group"] = self._groups[int(groups.argmax())]
                    fields["age_probabilities"] = dict(
                        zip(self._groups, groups.tolist(), strict=True)
                    )
            if "gender" in probabilities:
                genders = probabilities["gender"][row]
                best = int(genders.argmax())
                fields["gender"] = GENDERS[best]
                fields["gender_probability"] = float(genders[best] / genders.sum())
            predictions.append(Prediction(**fields))
        return predictions
