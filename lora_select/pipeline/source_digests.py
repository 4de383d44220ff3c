"""The bytes behind everything that a config names, hashed once when a run is opened."""

from collections.abc import Mapping
from pathlib import Path

from lora_select.config import RunConfig
from lora_select.data.reading.source_files import source_digest
from lora_select.evaluation import user_metrics
from lora_select.pipeline.history import seed_noise
from lora_select.records import sha256_file
from lora_select.records.digests import key_of
from lora_select.retention.references import EMBEDDED

TASK_FILES = ("*.yaml", "*.py", "*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt")
"""What of `evaluation.task_folder` counts: files that define a task or hold its documents, not what lies in folders below."""


def digests(config: RunConfig) -> dict[str, str]:
    """SHA-256 by role: `train`, `eval`, `benchmarks.0`, `references.0`, `judges.0`, `earlier.0` in the config's order, `tasks`, `noise`, `metrics`.

    What is no local file stands for itself, as in :func:`lora_select.data.reading.source_files.source_digest`. Embedded reference sets are the
    library's own and left out.

    Raises:
        InputError: a metric of `evaluation.metrics` cannot be scored, or `promotion.seed_noise` names no measurement.
    """
    found = {"train": source_digest(config.dataset.source)}
    if config.dataset.eval_source:
        found["eval"] = source_digest(config.dataset.eval_source)
    named = {
        "benchmarks": config.gate.benchmarks,
        "references": config.retention.references,
        "judges": config.retention.judges,
    }
    for role, names in named.items():
        found |= {f"{role}.{at}": source_digest(name) for at, name in enumerate(names) if name not in EMBEDDED}
    for at, name in enumerate(config.retention.earlier):
        found[f"earlier.{at}"] = sha256_file(Path(name)) if Path(name).is_file() else name
    if config.evaluation.tasks:
        folder = Path(config.evaluation.task_folder)
        found["tasks"] = key_of({kind: source_digest(str(folder / kind)) for kind in TASK_FILES})
    if isinstance(config.promotion.seed_noise, str):
        found["noise"] = seed_noise(config.promotion.seed_noise)[1].record
    if config.evaluation.metrics:
        found["metrics"] = user_metrics.source_digest(config.evaluation.metrics)
    return found


def of(sources: Mapping[str, str], *roles: str) -> dict[str, str]:
    """Those of some roles, for a stage's key.

    >>> of({"train": "a", "judges.0": "b", "judges.1": "c"}, "judges", "eval")
    {'judges.0': 'b', 'judges.1': 'c'}
    """
    return {name: digest for name, digest in sources.items() if name.partition(".")[0] in roles}
