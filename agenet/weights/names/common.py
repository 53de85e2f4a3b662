"""Shared by the name maps: our names, PyTorch's tensor layout, and errors about unknown tensors."""

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
    """Returns the tensors of a PyTorch state dict under our names and in our layout.

    `rename` turns the name of a PyTorch module into our path, or into None if we have no such
    module. Kernels [out, in, k, k] become [k, k, in, out], so depthwise kernels [C, 1, k, k]
    become [k, k, 1, C], and matrices [out, in] become [in, out].

    Raises:
        UserError: a tensor has no counterpart in our network.
    """
    result: dict[str, np.ndarray] = {}
    unknown = []
    norms = {name.removesuffix("running_mean") for name in tensors if "running_mean" in name}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":  # only counts training steps
            continue
        path = rename(module)
        template = (_NORM if f"{module}." in norms else _AFFINE).get(leaf)
        if path is None or template is None or template.format(path) in result:
            unknown.append(name)
            continue
        moved = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
        result[template.format(path)] = tensor.T if tensor.ndim == 2 else moved
    check_known(unknown, source)
    return result


def to_torch(
    tensors: Mapping[str, np.ndarray], modules: Mapping[str, str], source: str
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; `modules` gives PyTorch's module for each of our paths.

    Raises:
        UserError: a tensor has no counterpart in PyTorch's network.
    """
    result, unplaced = {}, []
    leaves = {template: leaf for leaf, template in (*_NORM.items(), *_AFFINE.items())}
    for name, tensor in tensors.items():
        path, template = split_name(name)
        leaf = leaves.get(template)
        if path not in modules or leaf is None:
            unplaced.append(name)
            continue
        moved = tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
        result[f"{modules[path]}.{leaf}"] = np.ascontiguousarray(moved)
    check_placed(unplaced, source)
    return result


def split_name(name: str) -> tuple[str, str]:
    """Splits "params/a/b/kernel" into the path "a/b" and the template "params/{}/kernel"."""
    collection, _, rest = name.partition("/")
    path, _, leaf = rest.rpartition("/")
    return path, f"{collection}/{{}}/{leaf}"


def first_head(tensors: Iterable[str]) -> list[str]:
    """Returns the path of the first head, if any; other frameworks have no place for more."""
    return sorted({"/".join(name.split("/")[1:3]) for name in tensors if "/heads/" in name})[:1]


def head_path(classes: int) -> str:
    """Our path for the classifier that a backbone was published with."""
    return f"heads/{'imagenet' if classes == 1000 else 'classes'}"


def check_known(unknown: Iterable[str], source: str) -> None:
    """Raises `UserError` if a file of `source` has tensors `unknown` to its name map."""
    names = sorted(unknown)
    if names:
        raise UserError(
            f"{list_names(names)}: not in a network whose names follow {source}; "
            "the file is of another network, or of another source"
        )


def check_placed(unplaced: Iterable[str], source: str) -> None:
    """Raises `UserError` if tensors of ours, `unplaced`, have no counterpart in `source`."""
    names = sorted(unplaced)
    if names:
        raise UserError(f"{source} has no place for {list_names(names)}")


def list_names(names: list[str]) -> str:
    """The first few of untrusted names, printable, and their number."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
