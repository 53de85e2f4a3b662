"""The Optuna study of a search: its space, and what all workers must agree in."""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from agenet.errors import UserError, one_line
from agenet.evaluation.metrics import LAST
from agenet.runs.config import RunConfig, field_names, to_dict
from agenet.runs.identity import digest_data, digest_weights, find_differences
from agenet.runs.series import ReadConfig
from agenet.runs.storage import (
    describe,
    import_optuna,
    open_storage,
    show_storage,
    storage_errors_explained,
)

IDENTITY = "agenet"  # the user attribute of a study that says of what it is
PROBES = 200  # random draws that find the parameters of a space, conditional ones included
_PARSED = 10  # of these whose configs are checked as a whole

Fields = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """A search as its file describes it.

    Attributes:
        path: of the file.
        flags: `--config=FILE` and `--config.FIELD=VALUE` of all trials.
        config: what the flags stand for; trials are compared by its `best` metric.
        suggest: from an Optuna trial to the fields that it sets.
        trials: their number.
        sampler: creates the sampler of a trial from a seed; None for TPE.
        pruner: creates the pruner; None for the median rule, from the second validation on.
        space: the parameters, by name, each with its range in words.
    """

    path: str
    flags: tuple[str, ...]
    config: RunConfig
    suggest: Callable[[Any], Fields]
    trials: int
    sampler: Callable[[int], Any] | None
    pruner: Callable[[], Any] | None
    space: Mapping[str, str]

    @property
    def metric(self) -> str:
        return self.config.best

    @property
    def minimizes(self) -> bool:
        return self.metric.endswith(("loss", "mae"))

    def sampler_for(self, number: int) -> Any:
        """The sampler of a trial. Its seed is the trial's own, so that workers differ."""
        import optuna

        create = self.sampler or (lambda seed: optuna.samplers.TPESampler(seed=seed))
        return create(self.config.seed + number)

    def create_pruner(self) -> Any:
        import optuna

        return self.pruner() if self.pruner else optuna.pruners.MedianPruner(n_warmup_steps=1)

    def fields_of(self, trial: Any) -> Fields:
        """The fields that a trial sets; parameters that it lacks are drawn.

        Raises:
            UserError: `suggest` fails, or returns something else.
        """
        try:
            fields = self.suggest(trial)
            return {str(name): value for name, value in fields.items()}
        except Exception as error:  # The file may be anything.
            raise UserError(f"{self.path}: suggest: {describe(error)}") from error

    def flags_of(self, trial: Any) -> tuple[str, ...]:
        """All flags of a trial's run."""
        changes = self.fields_of(trial).items()
        return (*self.flags, *(f"--config.{name}={value}" for name, value in changes))


def read_search(
    path: str, described: Mapping[str, Any], fields: tuple[str, ...], read_config: ReadConfig
) -> Search:
    """Reads a search and draws from its space to find mistakes.

    Args:
        path: of the file.
        described: what its `get_sweep` returned.
        fields: `--config.FIELD=VALUE` of all trials; what a trial suggests comes after them.
        read_config: parses `--config=...` and `--config.FIELD=VALUE`, see `agenet.main`.

    Raises:
        UserError: it is not a search, or sets fields that do not exist.
    """
    known = {"config", "fields", "suggest", "trials", "sampler", "pruner"}
    if unknown := sorted(set(described) - known):
        raise UserError(f"{path}: a search has no {one_line(unknown[0])}, but {', '.join(known)}")
    trials = described.get("trials", 0)
    if not isinstance(trials, int) or trials < 1:
        raise UserError(f"{path}: trials {one_line(trials)} must be a whole number from 1 on")
    own = tuple(f"--config.{name}={value}" for name, value in described["fields"].items())
    flags = (f"--config={described['config']}", *own, *fields)
    config = read_config(flags)
    if config.best == LAST:
        raise UserError(
            f'{path}: best "{LAST}" is no metric to search by: use --config.best=validation/loss'
        )
    search = Search(
        path,
        flags,
        config,
        described["suggest"],
        trials,
        described.get("sampler"),
        described.get("pruner"),
        {},
    )
    return Search(**{**vars(search), "space": _probe(search, read_config)})


def _probe(search: Search, read_config: ReadConfig) -> dict[str, str]:
    """The space of a search, from random draws without a storage.

    Raises:
        UserError: a field does not exist, a value does not fit, or a range depends on others.
    """
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space: dict[str, str] = {}
    for number in range(PROBES):
        trial = study.ask()
        fields = search.fields_of(trial)
        if "best" in fields:
            raise UserError(f"{search.path}: trials are compared by best, it must not vary")
        if unknown := [name for name in fields if name not in field_names()]:
            # The error names the nearest field.
            read_config((*search.flags, f"--config.{unknown[0]}={fields[unknown[0]]}"))
        for name, distribution in trial.distributions.items():
            text = _range(distribution)
            if space.setdefault(name, text) != text:
                raise UserError(
                    f"{search.path}: {name} has the ranges {space[name]} and {text}: give them "
                    "different names"
                )
        if number < _PARSED:
            try:
                read_config(search.flags_of(trial))
            except UserError as error:
                raise UserError(f"{search.path}: {error}") from error
    if not space:
        raise UserError(f"{search.path}: suggest draws no parameter from its trial")
    return dict(sorted(space.items()))


def _range(distribution: Any) -> str:
    """A distribution in words."""
    if hasattr(distribution, "choices"):
        return ", ".join(map(str, distribution.choices))
    text = f"{distribution.low} to {distribution.high}"
    text += f" by {distribution.step}" if distribution.step not in (None, 1) else ""
    return text + (", logarithmic" if distribution.log else "")


@contextmanager
def open_study(search: Search, storage: str, name: str) -> Iterator[Any]:
    """Opens the study of a search, or creates it; its storage is closed at the end.

    Args:
        search: what the study must be of.
        storage: a database's URL, or the path of a journal file.
        name: of the study.

    Raises:
        UserError: the storage cannot be opened, or holds a study of another search.
    """
    with ExitStack() as stack:
        yield _open_study(search, storage, name, stack)


def _open_study(search: Search, storage: str, name: str, stack: ExitStack) -> Any:
    optuna = import_optuna()
    where = show_storage(storage)
    try:
        study = optuna.create_study(
            storage=stack.enter_context(open_storage(storage)),
            study_name=name,
            direction="minimize" if search.minimizes else "maximize",
            sampler=search.sampler_for(0),
            pruner=search.create_pruner(),
            load_if_exists=True,
        )
        identity, used = study.user_attrs.get(IDENTITY), bool(study.get_trials(deepcopy=False))
    except (OSError, UserError):
        raise
    except ImportError as error:
        raise UserError(
            f"--storage {where} needs a Python package of that database, such as psycopg2-binary "
            "or pymysql: install it"
        ) from error
    except Exception as error:  # Storages raise whatever their content or server leads to.
        raise UserError(
            f"--storage {where} cannot be used ({describe(error)}): name another one"
        ) from error
    own = _identify(search)
    if identity is None and not used:
        with storage_errors_explained(storage):
            study.set_user_attr(IDENTITY, own)
            # Another worker may have done so at the same moment.
            identity = study.user_attrs[IDENTITY]
    if not isinstance(identity, dict):
        raise UserError(f"the study {name} in {where} is not of agenet sweep: give another --study")
    # What was not there at one of the times counts as unchanged.
    then = identity["sources"] if isinstance(identity.get("sources"), dict) else {}
    both = {n for n, digest in own["sources"].items() if digest and then.get(n)}
    own["sources"] = {name: own["sources"][name] for name in both}
    identity = identity | {"sources": {name: then[name] for name in both}}
    if differences := find_differences(identity, own):
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"the study {name} in {where} is of another search "
            f"({'; '.join(differences[:3])}{more}): give that search's file and fields, or another "
            "--workdir or --study to start afresh"
        )
    return study


def _identify(search: Search) -> dict[str, Any]:
    """What all workers of a study must agree in, as JSON gives it back."""
    dataset = search.config.dataset
    sources = {name: digest_data(name, dataset.data_dir) for name in dataset.names}
    sources["init"] = digest_weights(search.config.init)
    identity = {"config": to_dict(search.config), "space": search.space, "sources": sources}
    return dict(json.loads(json.dumps(identity)))


def importance(study: Any) -> dict[str, float]:
    """The share of each parameter in how good trials are (PED-ANOVA), the largest first.

    Watanabe, Bansal & Hutter, "PED-ANOVA", IJCAI 2023. {} for too few trials to tell.
    """
    optuna = import_optuna()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError, TypeError):  # All trials are alike, or damaged.
            return {}
    return {str(name): value for name, value in found.items() if math.isfinite(value)}
