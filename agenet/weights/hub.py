"""Weights on a hub of models: addresses, the list of files with their hashes, verified downloads.

A repository that `agenet push` wrote holds `agenet.json`, which lists the other files with sizes
and SHA-256. Repositories are other people's: names are checked, sizes are bounded before anything
is downloaded, and of the files only the list and the weights are read, both strictly.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agenet.errors import UserError, needs_extra, printable
from agenet.files import hash_file, write_json
from agenet.weights import bundled
from agenet.weights.cache import cache_dir
from agenet.weights.connection import is_offline
from agenet.weights.download import DEFAULT_RETRIES

log = logging.getLogger(__name__)

MANIFEST = "agenet.json"
WEIGHTS = "weights.safetensors"
_FORMAT = 1
_SCHEME = "hf://"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_LARGEST_MANIFEST = 100_000  # bytes
_MOST_FILES = 100
_LOGIN = "set HF_TOKEN, or run `hf auth login`"


@dataclass(frozen=True)
class HubAddress:
    """A repository of a model on the hub.

    Attributes:
        repository: "user/name".
        revision: a branch, a tag or a commit; empty for the main branch.
    """

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        return _SCHEME + self.repository + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class _Listed:
    size: int
    sha256: str


def is_hub_address(name: str | Path) -> bool:
    return str(name).startswith(("hf:/", "hf:\\"))


def parse_address(text: str | Path) -> HubAddress:
    """The repository that "hf://user/name" or "hf://user/name@revision" stands for.

    Raises:
        UserError: it is no such address.
    """
    # A `Path` has only one slash left.
    pattern = rf"hf:[/\\]+({_NAME})[/\\]({_NAME})(?:@([A-Za-z0-9][\w./-]{{0,127}}))?"
    match = re.fullmatch(pattern, str(text))
    if not match or ".." in str(text):
        raise UserError(
            f"{printable(str(text))} is not an address on the hub: give hf://user/name, or "
            "hf://user/name@revision"
        )
    return HubAddress(f"{match[1]}/{match[2]}", match[3] or "")


def find_weights(name_or_path: str | Path) -> Path:
    """Like `agenet.weights.bundled.find_weights`, and for addresses on the hub the verified file.

    Raises:
        UserError: there are no such weights, or see `fetch_weights`.
    """
    if is_hub_address(name_or_path):
        return fetch_weights(parse_address(name_or_path))
    return bundled.find_weights(name_or_path)


def write_manifest(folder: Path, names: Sequence[str], version: str) -> None:
    """Writes the list of files, which are in the same folder, with their sizes and hashes."""
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        for name in names
    }
    write_json(folder / MANIFEST, {"format": _FORMAT, "agenet": version, "files": files})


def fetch_weights(address: HubAddress) -> Path:
    """The weights of a repository, from the cache where they are in it, with a verified hash.

    The main branch, or another name, is looked up each time; a commit is not once it is cached.
    With AGENET_OFFLINE=1 nothing is looked up, and what is cached is used.

    Raises:
        UserError: the repository is missing or denied, not of agenet, its files do not have the
            listed sizes and hashes, or there is no connection and nothing is cached.
    """
    hub = import_hub("loading from the hub")
    folder = cache_dir() / "hub"
    with hub_errors_explained(address):
        manifest, commit = _fetch(hub, address, folder, MANIFEST, _LARGEST_MANIFEST)
        listed = read_manifest(manifest, address)[WEIGHTS]
        weights, _ = _fetch(
            hub,
            HubAddress(address.repository, commit or address.revision),
            folder,
            WEIGHTS,
            DEFAULT_RETRIES.max_bytes,
            listed,
        )
    digest = hash_file(weights)
    if weights.stat().st_size != listed.size or digest != listed.sha256:
        _forget(weights)
        raise UserError(
            f"{address}: {WEIGHTS} has the SHA-256 {digest[:16]}..., but {MANIFEST} lists "
            f"{listed.sha256[:16]}...: deleted from the cache; try again, or tell who published it"
        )
    return weights


def _fetch(
    hub: Any,
    address: HubAddress,
    folder: Path,
    name: str,
    max_bytes: int,
    listed: _Listed | None = None,
) -> tuple[Path, str]:
    """One file and its commit; checks the size and hash that the server states beforehand."""
    revision = address.revision or None
    options: dict[str, Any] = {"repo_id": address.repository, "filename": name}
    if not is_offline():
        url = hub.hf_hub_url(**options, revision=revision)
        known = hub.try_to_load_from_cache(**options, revision=revision, cache_dir=folder)
        is_commit = re.fullmatch("[0-9a-f]{40}", address.revision)
        if not (is_commit and isinstance(known, str)):
            try:
                stated = hub.get_hf_file_metadata(url, token=hub.get_token())
            except Exception as error:  # Of another HTTP library in each version of the client.
                if getattr(error, "response", None) is not None or not isinstance(known, str):
                    raise
                log.warning("%s: no connection to the hub: using the cached files", address)
                return Path(known), Path(known).parent.name
            size, etag = stated.size, stated.etag or ""
            if size is None or size > max_bytes:
                raise UserError(
                    f"{address}: {name} has {size or 'unknown'} bytes, more than the limit of "
                    f"{max_bytes:,}"
                )
            if listed and (size != listed.size or _contradicts(etag, listed.sha256)):
                raise UserError(
                    f"{address}: the hub has another {name} than {MANIFEST} lists: it was replaced "
                    "without agenet push; name an earlier revision, as in hf://user/name@REVISION"
                )
    # Asked for by its own name, a branch is in the cache by that name, too.
    path = hub.hf_hub_download(
        **options, revision=revision, cache_dir=folder, local_files_only=is_offline()
    )
    return Path(path), Path(path).parent.name


def _contradicts(etag: str, sha256: str) -> bool:
    """Whether an ETag is the SHA-256 of other content; of small files it is a hash of git's."""
    return bool(re.fullmatch("[0-9a-f]{64}", etag)) and etag != sha256


def _forget(path: Path) -> None:
    """Deletes a cached file, and what the cache's link to it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def read_manifest(path: Path, address: HubAddress) -> Mapping[str, _Listed]:
    """The files that a repository's list names, `WEIGHTS` among them.

    Raises:
        UserError: it is not such a list.
    """
    try:
        content = json.loads(path.read_bytes()[: _LARGEST_MANIFEST + 1])
        format, files = content["format"], content["files"]
        listed = {str(n): _Listed(entry["size"], entry["sha256"]) for n, entry in files.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{address}: {MANIFEST} is not a list of files of agenet") from error
    if format != _FORMAT:
        raise UserError(f"{address}: {MANIFEST} is of another version of agenet: update agenet")
    valid = 0 < len(listed) <= _MOST_FILES and all(
        re.fullmatch(_NAME, name)
        and type(entry.size) is int
        and 0 < entry.size <= DEFAULT_RETRIES.max_bytes
        and isinstance(entry.sha256, str)
        and re.fullmatch("[0-9a-f]{64}", entry.sha256)
        for name, entry in listed.items()
    )
    if not valid or WEIGHTS not in listed:
        raise UserError(f"{address}: {MANIFEST} lists no {WEIGHTS}, or files that cannot be")
    return listed


def import_hub(what: str) -> Any:
    """The client of the hub, whose own reports of use are switched off.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise needs_extra("hub", what, error) from error
    constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


@contextmanager
def hub_errors_explained(address: HubAddress) -> Iterator[None]:
    """Turns what the hub's client raises into a `UserError` of one line."""
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(f"{address}: its owner grants access on request: ask there") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{address}: there is no such repository, or it is private and this account may not "
            f"read it: check the name, or {_LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address}: the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        why = "AGENET_OFFLINE is set" if is_offline() else "the hub gives no answer to use"
        raise UserError(f"{address} is not in the cache, and {why}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{address} is not a repository of agenet: it has no {MANIFEST}, which `agenet push` "
            "writes"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{address}: HF_HUB_OFFLINE forbids to look it up") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(f"{address}: the hub denies this ({status}): {_LOGIN}") from error
        raise UserError(f"{address}: the hub answered {status}: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{address}: {_first_line(error)}") from error
    except Exception as error:
        # Its HTTP library is another one in each version; disks raise OSErrors with a number.
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        if not type(error).__module__.startswith(("http", "requests", "huggingface", "builtins")):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UserError(f"{address}: no answer from the hub: {_first_line(cause)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0], 300)
