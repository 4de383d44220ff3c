"""Opening and closing a run: checks, its key, its folder, who is told."""

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from lora_select import __version__, models, records, serving
from lora_select.audit import run_entries
from lora_select.audit.books import anchor, seal
from lora_select.audit.books.ledger import in_folder
from lora_select.audit.registrations import admit, inside
from lora_select.config import RunConfig
from lora_select.data.intake import check_source
from lora_select.errors import InputError, WorldError, require
from lora_select.models.rounding import GGUF_FORMS
from lora_select.pipeline import source_digests, workspace
from lora_select.pipeline.history import seed_noise
from lora_select.pipeline.observers import Tracking
from lora_select.pipeline.stage import Observer, Outcome, Place, Runner, Stage, plainly
from lora_select.records import BaseModel, Constraints
from lora_select.records.digests import key_of, library_digest
from lora_select.tracking import names
from lora_select.training.machine import Machine, detect_machine, has_gpu
from lora_select.variants import support

if TYPE_CHECKING:
    from lora_select.tracking.tracker import Tracker

R = TypeVar("R")
NEEDED_DISK_GIB = 2.0


@final
@dataclass(frozen=True)
class Run:
    """An open run: what it was asked, the base model, the bytes behind its sources as they were at its opening, its key, where it works."""

    config: RunConfig
    base: BaseModel
    sources: Mapping[str, str]
    key: str
    place: Place

    @property
    def folder(self) -> Path:
        """The folder that a person opens."""
        return self.place.root / self.key

    @functools.cached_property
    def machine(self) -> Machine:
        """This machine, looked at once: where things are measured and where the line itself trains.

        Raises:
            InputError: `training.device` is cuda and there is none.
        """
        return detect_machine(self.config.training.device)

    @functools.cached_property
    def measuring(self) -> Machine:
        """The same, but this machine's CPU where `training.device` names a GPU that is elsewhere."""
        return self.machine if self.is_here else detect_machine("cpu")

    @functools.cached_property
    def trainer(self) -> Machine:
        """Where another trainer will run, with the memory that `training.memory` gives it.

        Raises:
            InputError: it is not this machine, and its memory is not named.
        """
        memory = self.config.training.memory
        if self.is_here:
            return replace(self.machine, memory_gib=memory or self.machine.memory_gib)
        if memory is None:
            raise InputError(
                "`training.device` is cuda, and this machine has no GPU to ask: name its memory, such as `training.memory=24GiB`"
            )
        return Machine("cuda", 1, 1, memory, True)

    @property
    def is_here(self) -> bool:
        """Whether training will run on the device that this machine has."""
        return self.config.training.device != "cuda" or has_gpu()

    def constraints(self, planned_steps: int) -> Constraints:
        """What the decision must respect, for a training of so many steps."""
        return replace(self.config.constraints, planned_steps=planned_steps)

    @property
    def training(self) -> dict[str, Any]:
        """What the user said about training and the base's storage."""
        told = self.config.training.model_dump(exclude={"device", "memory"})
        return told | {"seed": self.config.seed, "quantize": self.config.base_model.quantize}

    def do(self, stage: Stage[R], name: str, /, **inputs: Any) -> Outcome[R]:
        """Run or take up a stage, and show its record in the run's folder as `<name>.json`."""
        outcome = stage(self.place, label=name, **inputs)
        workspace.view(self.place.root, self.key, outcome.ref, name)
        return outcome


def run_key(config: RunConfig, base: BaseModel, found: Mapping[str, str]) -> str:
    """The run's name: the same config on the same bytes (:func:`source_digests.digests`) with the same library is the same run."""
    return key_of({"config": config.digested(), "sources": found, "base": base.digest, "library": library_digest()})


def folder_of(config: RunConfig) -> Path:
    """Where the run of a config lies, or will lie, with the bytes that are behind it now.

    Raises:
        InputError: no such model.
    """
    base = models.resolve(config.base_model.source, config.base_model.revision)
    return Path(config.runs_dir) / run_key(config, base, source_digests.digests(config))


def check(config: RunConfig) -> None:
    """Refuse at once what needs neither the orchestrator nor the model to be seen.

    Raises:
        InputError: no such data, no place for the runs, a tracking URI that can hold none, or a named variant that was seen
            to fail in this setting.
    """
    for source in (config.dataset.source, config.dataset.eval_source):
        if source:
            if config.dataset.allowed_folders:
                inside(source, config.dataset.allowed_folders)
            check_source(source)
    if config.tracking.uri is not None:
        _check_tracking(config.tracking.uri)
    if config.base_model.quantize:
        require("bitsandbytes", "quant", "`base_model.quantize`")
    for form in config.evaluation.quantized:
        of = "gguf" if form in GGUF_FORMS else "bitsandbytes"
        require(of, "quant", f"`evaluation.quantized` {form}", "leave it out")
    _check_disk(Path(config.runs_dir))
    check_variant(config)


def check_variant(config: RunConfig, architecture: str | None = None) -> None:
    """Refuse a named variant that was measured to fail in this setting.

    Raises:
        InputError: says what was measured.
    """
    constraints = config.constraints
    seen = support.faults(constraints.variant or "", constraints, architecture=architecture)
    if seen:
        raise InputError(f"`selection.variant` {constraints.variant} does not work in this setting: {seen[0]}")


def _check_base(config: RunConfig, base: BaseModel) -> None:
    """Refuse what this base model cannot do.

    Raises:
        InputError: the named variant, the engine, a form of weights or a measurement of seeds is not for it.
    """
    check_variant(config, base.architecture)
    if refused := serving.unsupported_base(config.selection.serve, base.architecture):
        raise InputError(f"`selection.serve` {config.selection.serve}: {refused[0]}")
    in_gguf = [form for form in config.evaluation.quantized if form in GGUF_FORMS]
    if in_gguf and base.architecture not in serving.llamacpp.ARCHITECTURES:
        known = ", ".join(serving.llamacpp.ARCHITECTURES)
        raise InputError(
            f"`evaluation.quantized` {in_gguf[0]}: which weights of {base.architecture} a GGUF file stores in fewer bits is not known here "
            f"(known: {known}); take nf4 or int8"
        )
    noise = config.promotion.seed_noise
    if isinstance(noise, str) and seed_noise(noise)[0].base_digest != base.digest:
        raise InputError(
            f"`promotion.seed_noise` {noise} was measured on another base model; measure it on {base.source}"
        )


@contextmanager
def opened(
    config: RunConfig,
    *,
    observers: Sequence[Observer] = (),
    runner: Runner = plainly,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Check the world, name the run, open its MLflow parent where it is tracked; close it as FINISHED, FAILED or KILLED.

    Args:
        config: checked.
        observers: who is told, besides MLflow.
        runner: who runs the stages.
        tags: of the MLflow run.

    Raises:
        InputError: what cannot work, as far as it can be seen before anything expensive.
    """
    check(config)
    root = Path(config.runs_dir)
    found = source_digests.digests(config)
    if config.dataset.registered:
        admit(root, config.dataset.source, config.dataset.registered, found["train"], config.dataset.allowed_folders)
    base = models.resolve(config.base_model.source, config.base_model.revision)
    _check_base(config, base)
    key = run_key(config, base, found)
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    changed = run_entries.opened(folder)
    records.write_private(folder / "config.json", config.model_dump_json(indent=2) + "\n")
    tracker = None if config.tracking.uri is None else _tracker(config, folder, key, _tags(base) | dict(tags or {}))
    tracking = [Tracking(tracker, machine=config.tracking.system_metrics)] if tracker else []
    told = (*tracking, *observers)
    place = Place(root, tracker, told, runner)
    place.say(
        f"lora-select {__version__}: {config.name}, {base.source} ({base.num_parameters / 1e6:.1f} M parameters), run {key}"
    )
    for line in changed:
        place.say(line)
    try:
        yield Run(config, base, found, key, place)
        _enter(config, found, folder, tracker, place)
    except BaseException as error:
        for observer in told:
            observer.ended(folder, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    for observer in told:
        observer.ended(folder, "FINISHED")
    for left in (one.left for one in tracking if one.left):
        place.say(f"MLflow missed {left} entries; they are kept and sent by the next run of the same config")
    if seal.faults(folder):  # MLflow came back at the very end, and the notes on it are others now
        _enter(config, found, folder, tracker, place)


def _enter(config: RunConfig, found: Mapping[str, str], folder: Path, tracker: "Tracker | None", place: Place) -> None:
    """Seal the run's folder, enter it in the ledger with the bytes that it was opened on, and tell MLflow the ledger's head."""
    if tracker is not None:
        tracker.flush()
    run_entries.closed(folder, sources=found, model=config.promotion.model_name or config.name)
    if tracker is not None and (said := anchor.push(in_folder(folder.parent), tracker.store, run_id=tracker.parent)):
        place.say(said)


def _tracker(config: RunConfig, folder: Path, key: str, tags: Mapping[str, str]) -> "Tracker":
    """Make the store ready (migrated once), save the comparison view, and find or create the parent run.

    Raises:
        InputError: the store does not answer now; later in the run that would only be noted.
    """
    from lora_select.tracking import comparison, store
    from lora_select.tracking.tracker import Tracker

    try:
        ready = store.prepare(str(config.tracking.uri), config.tracking.experiment)
    except WorldError as error:
        raise InputError(str(error)) from error
    comparison.save(ready)
    return Tracker.start(ready, folder, key, name=config.name, tags=tags)


def _check_tracking(uri: str) -> None:
    from lora_select.tracking import store

    require("mlflow", "track", "`tracking.uri`", "set `tracking.uri=null`, which tracks nothing")
    store.check(uri)
    try:
        store.reach(uri)
    except WorldError as error:
        raise InputError(str(error)) from error


def _check_disk(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`runs_dir` {root} cannot be made ({error.strerror}); name a folder that can be written"
        ) from error
    free = shutil.disk_usage(root).free / 2**30
    if free < NEEDED_DISK_GIB:
        raise InputError(
            f"a run needs about {NEEDED_DISK_GIB:g} GiB of disk, {root.resolve()} has {free:.1f}; free some or set `runs_dir`"
        )


def _tags(base: BaseModel) -> dict[str, str]:
    return {names.MODEL_SHA256: base.digest, names.LIBRARY_DIGEST: library_digest(), names.GIT_COMMIT: _commit()}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
