"""What the name maps share: the places of leaves, and the transposition of PyTorch's tensors."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from agenet.errors import UserError, printable

_SHOWN = 5
_NORM = {
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}
_AFFINE = {"weight": "params/{}/kernel", "bias": "params/{}/bias"}


def from_torch(
    tensors: Mapping[str, np.ndarray], rename: Callable[[str], str | None], source: str
) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch state dictionary by our names and in our layout.

    `rename` turns the name of a PyTorch module into the path of ours, None if there is no such
    one. Kernels [out, in, k, k] become [k, k, in, out], depthwise ones [C, 1, k, k] so become
    [k, k, 1, C], and matrices [out, in] become [in, out].

    Raises:
        UserError: a tensor has no place with us.
    """
    result: dict[str, np.ndarray] = {}
    strangers = []
    norms = {name.removesuffix("running_mean") for name in tensors if "running_mean" in name}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":  # only counts training steps
            continue
        path = rename(module)
        place = (_NORM if f"{module}." in norms else _AFFINE).get(leaf)
        if path is None or place is None or place.format(path) in result:
            strangers.append(name)
        else:
            result[place.format(path)] = tensor.T if tensor.ndim == 2 else _spatial_first(tensor)
    refuse(strangers, source)
    return result


def to_torch(
    tensors: Mapping[str, np.ndarray], modules: Mapping[str, str], source: str
) -> dict[str, np.ndarray]:
    """What `from_torch` would turn into these tensors; `modules` are those of our paths.

    Raises:
        UserError: a tensor has no place with them.
    """
    result, strangers = {}, []
    leaves = {place: leaf for leaf, place in (*_NORM.items(), *_AFFINE.items())}
    for name, tensor in tensors.items():
        path, place = place_of(name)
        leaf = leaves.get(place)
        if path not in modules or leaf is None:
            strangers.append(name)
            continue
        moved = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        result[f"{modules[path]}.{leaf}"] = np.ascontiguousarray(moved)
    no_place(strangers, source)
    return result


def place_of(name: str) -> tuple[str, str]:
    """Our path in a name, and the place that the maps of leaves have: "params/{}/kernel"."""
    collection, _, rest = name.partition("/")
    path, _, leaf = rest.rpartition("/")
    return path, f"{collection}/{{}}/{leaf}"


def no_place(strangers: Iterable[str], source: str) -> None:
    """Raises UserError if there are `strangers`, tensors of ours that `source` has no place for."""
    names = sorted(strangers)
    if names:
        raise UserError(f"{source} has no place for {bounded(names)}")


def _spatial_first(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def head(classes: int) -> str:
    """Path of the classifier that a backbone was published with."""
    return f"heads/{'imagenet' if classes == 1000 else 'classes'}"


def refuse(strangers: Iterable[str], source: str) -> None:
    """Raises UserError if there are `strangers`, names that the map of `source` does not know."""
    names = sorted(strangers)
    if names:
        raise UserError(
            f"{bounded(names)}: not in a network whose names follow {source}; "
            "the file is of another network, or of another source"
        )


def bounded(names: list[str]) -> str:
    """The first few of many names, fit to be shown, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
