"""An adapter as MLflow's LoggedModel: one for each adapter and each kept checkpoint, linked to the run that trained it, dataset and evaluation.

An adapter's files stay where the training run has them (`adapter/` among its artifacts), a checkpoint's in the training stage's folder;
the model is the handle that MLflow's pages list under "Models", filter by parameters and hang evaluation metrics on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_select.records import Adapter
from lora_select.tracking import names
from lora_select.tracking.store import Store

TYPE = "lora-adapter"
CHECKPOINT = "lora-checkpoint"
LOSS = "checkpoint/validation_loss"
"""Nats per label token of the rows that were kept from training, after a checkpoint's step."""
EXTERNAL = "mlflow.model.isExternal"
"""MLflow's own mark for a model whose files are not below the model itself."""
SOURCE = "adapter.source"
VERSIONS = "mlflow.modelVersions"
"""Where MLflow's page of a model finds the versions that it was registered as: JSON."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that a run made: its digest, a name, parameters, and the optimizer step it is of.

    A checkpoint has its own `source` (an address), and its `loss` on rows that were kept from training where they were looked at.
    """

    adapter_digest: str
    name: str
    step: int
    params: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    loss: float | None = None


def entry(record: Adapter, params: Mapping[str, str]) -> ModelEntry:
    """The model of a finished adapter."""
    name = f"{record.spec.variant}-r{record.spec.r}-{record.digest[:8]}"
    return ModelEntry(record.digest, name, record.steps, params)


def checkpoints(record: Adapter, folder: Path, params: Mapping[str, str]) -> tuple[ModelEntry, ...]:
    """The models of the checkpoints that outlive a training, by step: the best on the rows that were kept from it.

    Those that only a killed training is resumed from are removed when the run ends, so nothing points to them.
    """
    looks = dict(zip(record.validation.steps, record.validation.losses, strict=True)) if record.validation else {}
    found: dict[str, ModelEntry] = {}
    for manifest in folder.glob("best/step-*/MANIFEST.json"):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        step, digest = int(told["step"]), told["files"]["parameters.safetensors"]
        name = f"{record.spec.variant}-r{record.spec.r}-step-{step}-{digest[:8]}"
        more = {**params, "step": str(step), "adapter": record.digest}
        found.setdefault(digest, ModelEntry(digest, name, step, more, manifest.parent.as_uri(), looks.get(step)))
    return tuple(sorted(found.values(), key=lambda one: one.step))


def made(store: Store, run_id: str, model: ModelEntry, folder: str = "adapter") -> str:
    """Find or make the model and say that `run_id` put it out, and from which dataset; doing it again changes nothing.

    Args:
        store: from `store.prepare`.
        run_id: the run that holds the files.
        model: which.
        folder: where among the run's artifacts the files are.

    Returns:
        The model's id.
    """
    from mlflow.entities import LoggedModelOutput

    client = store.client
    found = find(store, model.adapter_digest)
    if found is None:
        source, kind = (model.source, CHECKPOINT) if model.source else (f"runs:/{run_id}/{folder}", TYPE)
        tags = {names.ADAPTER_SHA256: model.adapter_digest, EXTERNAL: "true", SOURCE: source}
        fresh = client.create_logged_model(
            store.experiment_id, model.name, source_run_id=run_id, tags=tags, params=dict(model.params), model_type=kind
        )
        found = client.finalize_logged_model(fresh.model_id, "READY")
    run = client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if all(output.model_id != found.model_id for output in outputs):
        client.log_outputs(run_id, [LoggedModelOutput(found.model_id, model.step)])
    _from_dataset(store, run, "training")
    return found.model_id


def looked_at(store: Store, run_id: str, model: ModelEntry, timestamp_ms: int) -> list[Any]:
    """Make a checkpoint's model; its loss as a metric of the model and of the training rows, of which some were kept. No loss: no metric."""
    from mlflow.entities import Metric

    model_id = made(store, run_id, model)
    if model.loss is None:
        return []
    dataset = _dataset(store, store.client.get_run(run_id), "training")
    link = {"dataset_name": dataset.name, "dataset_digest": dataset.digest} if dataset else {}
    return [Metric(LOSS, model.loss, timestamp_ms, model.step, model_id=model_id, run_id=run_id, **link)]


def judged(store: Store, run_id: str, adapter_digest: str, metrics: list[Any]) -> list[Any]:
    """The metrics of an evaluation with the model and the evaluation dataset they are of, and the run's inputs said.

    Args:
        store: from `store.prepare`.
        run_id: of the evaluation, or the whole run.
        adapter_digest: what was judged.
        metrics: `mlflow.entities.Metric`.

    Returns:
        The same metrics; unchanged where the model is not known.
    """
    from mlflow.entities import LoggedModelInput, Metric

    model = find(store, adapter_digest)
    if model is None:
        return metrics
    client, run = store.client, store.client.get_run(run_id)
    dataset = _from_dataset(store, run, "evaluation")
    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    link = {"model_id": model.model_id}
    if dataset:
        link |= {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    return [Metric(item.key, item.value, item.timestamp, item.step, run_id=run_id, **link) for item in metrics]


def registered(store: Store, adapter_digest: str, name: str, version: str) -> None:
    """Say on the model's page that it is a version of a registered model; MLflow's database keeps no such link by itself."""
    model = find(store, adapter_digest)
    if model is None:
        return
    said = json.loads(model.tags.get(VERSIONS, "[]"))
    new = {"name": name, "version": version}
    if new not in said:
        store.client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps([*said, new])})


def find(store: Store, adapter_digest: str) -> Any | None:
    """The oldest model of this adapter in the experiment, or None."""
    same = store.client.search_logged_models(
        [store.experiment_id],
        filter_string=f"tags.`{names.ADAPTER_SHA256}` = '{adapter_digest}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        max_results=1,
    )
    return same[0] if same else None


def _from_dataset(store: Store, run: Any, context: str) -> Any | None:
    """Say that a run used the dataset of this context, unless it names its datasets already; returns the dataset."""
    from mlflow.entities import DatasetInput, InputTag

    dataset = _dataset(store, run, context)
    if dataset and not (run.inputs and run.inputs.dataset_inputs):
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        store.client.log_inputs(run.info.run_id, datasets=[used])
    return dataset


def _dataset(store: Store, run: Any, context: str) -> Any | None:
    """The dataset of this context among the run's inputs, else among its parent's."""
    runs = [run]
    parent = run.data.tags.get(names.PARENT_RUN_ID)
    if parent:
        runs.append(store.client.get_run(parent))
    for each in runs:
        for item in each.inputs.dataset_inputs if each.inputs else []:
            if any(tag.value == context for tag in item.tags):
                return item.dataset
    return None


def schema(columns: Mapping[str, bool]) -> str:
    """MLflow's JSON of a table of strings: column -> whether every row has it.

    >>> schema({"row_id": True})
    '{"mlflow_colspec": [{"type": "string", "name": "row_id", "required": true}]}'
    """
    return json.dumps(
        {"mlflow_colspec": [{"type": "string", "name": name, "required": needed} for name, needed in columns.items()]}
    )
