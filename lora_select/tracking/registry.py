"""The model registry: an adapter folder is a version, `challenger` and `champion` are aliases.

No MLflow flavour is used: a version's source is the plain PEFT folder among the training run's artifacts.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lora_select.address import masked as shown
from lora_select.address import scrub
from lora_select.errors import WorldError
from lora_select.records import Adapter, sha256_file
from lora_select.tracking import logged_models, names
from lora_select.tracking.store import Store, web_address

FOLDER = "adapter"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow says of a model, a version or an alias that is not there."""


@dataclass(frozen=True)
class Version:
    """One registered adapter. `aliases` are those that point to it now; `files` maps file names to SHA-256."""

    name: str
    version: str
    run_id: str
    adapter_digest: str
    aliases: tuple[str, ...]
    files: Mapping[str, str]


def register(
    store: Store, name: str, run_id: str, adapter: Adapter, folder: Path, *, tags: Mapping[str, str] | None = None
) -> Version:
    """Register the adapter of run `run_id`; the same adapter is registered once, whatever was killed before.

    Args:
        store: from `store.prepare`.
        name: the registered model; made when it is missing.
        run_id: the run that trained it; the folder is uploaded there as `adapter/` unless it is there already.
        adapter: the record; `adapter.digest` identifies the version.
        folder: the training stage's folder.
        tags: gate decision digest and the like.

    Raises:
        WorldError: MLflow cannot be reached or refuses.
    """
    with _in_words(store, f"register {name}"):
        if found := find(store, name, adapter.digest):
            logged_models.registered(store, adapter.digest, name, found.version)  # a kill may have come before it
            return found
        _create_model(store, name)
        _upload(store, run_id, adapter, folder)
        files = {Path(ref.path).name: ref.sha256 for ref in adapter.files}
        given = {names.ADAPTER_SHA256: adapter.digest, names.ADAPTER_FILES: json.dumps(files), **(tags or {})}
        made = store.client.create_model_version(name, f"runs:/{run_id}/{FOLDER}", run_id=run_id, tags=given)
        logged_models.registered(store, adapter.digest, name, str(made.version))
        return _version(made)


def find(store: Store, name: str, adapter_digest: str) -> Version | None:
    """The oldest version of `name` that holds this adapter, or None."""
    same = store.client.search_model_versions(f"tags.`{names.ADAPTER_SHA256}` = '{adapter_digest}'", max_results=1000)
    found = [version for version in same if version.name == name]  # a name may hold any quote, a filter may not
    oldest = min(found, key=lambda version: int(version.version), default=None)
    return _version(store.client.get_model_version(name, oldest.version)) if oldest else None


def set_alias(
    store: Store, name: str, version: str, alias: str, *, tags: Mapping[str, str] | None = None
) -> str | None:
    """Point `alias` at `version` and tag the version; returns the version it pointed to before, None if none.

    Tags come first: an alias is never seen without the decision that set it.
    """
    with _in_words(store, f"set alias {alias} of {name}"):
        before = by_alias(store, name, alias)
        for key, value in (tags or {}).items():
            store.client.set_model_version_tag(name, version, key, value)
        if before is None or before.version != version:
            store.client.set_registered_model_alias(name, alias, version)
        return before.version if before else None


def by_alias(store: Store, name: str, alias: str = names.CHAMPION) -> Version | None:
    """The version that `alias` points to, or None (no such model, no such alias).

    Raises:
        WorldError: MLflow does not answer.
    """
    with _in_words(store, f"look up {name}@{alias}"):
        try:
            return _version(store.client.get_model_version_by_alias(name, alias))
        except Exception as error:  # a database that went away raises SQLAlchemy's own
            if getattr(error, "error_code", None) in ABSENT:
                return None
            raise


def by_number(store: Store, name: str, version: str) -> Version | None:
    """A version by its number, or None where the model has none of that number.

    Raises:
        WorldError: MLflow does not answer.
    """
    with _in_words(store, f"look up version {version} of {name}"):
        try:
            return _version(store.client.get_model_version(name, version))
        except Exception as error:
            if getattr(error, "error_code", None) in ABSENT:
                return None
            raise


def tag_model(store: Store, name: str, key: str, value: str) -> None:
    """Tag a registered model; nothing where there is none yet.

    Raises:
        mlflow.exceptions.MlflowException: MLflow does not answer or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        store.client.set_registered_model_tag(name, key, value)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def download(store: Store, version: Version, into: Path) -> Path:
    """Fetch a version's adapter folder below `into` and check every file against the digest it was registered with.

    Raises:
        WorldError: MLflow cannot be reached, or a file is missing or was changed since.
    """
    into.mkdir(parents=True, exist_ok=True)
    with _in_words(store, f"download {version.name} version {version.version}"):
        folder = Path(store.client.download_artifacts(version.run_id, FOLDER, str(into)))
    for file, digest in version.files.items():
        place = folder / file
        if not place.exists() or sha256_file(place) != digest:
            raise WorldError(
                f"{file} of {version.name} version {version.version} is not what was registered (expected SHA-256 "
                f"{digest[:12]}…); it was changed in the artifact store, point alias `champion` to another version"
            )
    return folder


def link(store: Store, version: Version) -> str:
    """The version's page."""
    return f"{web_address(store.uri)}/#/models/{version.name}/versions/{version.version}"


def _upload(store: Store, run_id: str, adapter: Adapter, folder: Path) -> None:
    """Upload unless files of the same names and sizes are there (the tracker uploads at the end of training)."""
    there = {Path(item.path).name: item.file_size for item in store.client.list_artifacts(run_id, FOLDER)}
    if any(there.get(Path(ref.path).name) != ref.size for ref in adapter.files):
        store.client.log_artifacts(run_id, str(folder / adapter.directory), FOLDER)


def _create_model(store: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(found) -> Version:
    files = json.loads(found.tags.get(names.ADAPTER_FILES, "{}"))
    digest = found.tags.get(names.ADAPTER_SHA256, "")
    return Version(found.name, str(found.version), found.run_id, digest, tuple(found.aliases), files)


@contextmanager
def _in_words(store: Store, what: str) -> Iterator[None]:
    """Turn what MLflow and requests raise into one sentence."""
    try:
        yield
    except WorldError:
        raise
    except Exception as error:
        raise WorldError(
            f"cannot {what} at {shown(store.uri)}: {_first_line(error)}; run the same command again"
        ) from error


def _first_line(error: BaseException) -> str:
    return scrub((str(error).splitlines() or [type(error).__name__])[0])[:300]
