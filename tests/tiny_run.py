"""The smallest run of the whole line that an adapter gains in: its rows, its config, and how the flow is started on it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "dataset": {"max_length": 64, "eval_fraction": 0.3},
    "analysis": {"microbatches": 4, "microbatch_size": 2, "sketch_size": 16, "base_loss_rows": 4},
    "selection": {"learning_rate": 0.01},
    "training": {"batch_size": 8, "epochs": 4, "checkpoint_every": 4},
    "retention": {"mode": "off"},  # its three stages have tests of their own in tests/pipeline
    "evaluation": {"exact_match_rows": 3, "max_new_tokens": 6, "bootstrap_samples": 200, "reference_tokens": 512},
}


def written(folder: Path, model: Path, **sections: dict[str, Any]) -> Path:
    """Write rows and config; the runs and MLflow's database lie beside them. `sections` are laid over those of above."""
    rows = [{"prompt": f"say {n % 40}", "completion": f"<b>{n % 40}</b>"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = {
        "base_model": {"source": str(model)},
        "dataset": {"source": str(folder / "rows.jsonl")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    config: dict[str, Any] = {"name": "tiny", "runs_dir": str(folder / "runs")}
    for part in (SECTIONS, places, sections):
        for name, fields in part.items():
            config[name] = config.get(name, {}) | fields
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def environment(folder: Path) -> dict[str, str]:
    """Stores and caches below the folder, no server of Prefect's but the flow's own."""
    made = os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "LORA_SELECT_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
    }
    made.pop("PREFECT_API_URL", None)
    return made


def command(folder: Path, *overrides: str) -> list[str]:
    """The flow by hand."""
    return [sys.executable, "-m", "flows.finetune", "--config", str(folder / "tiny.yaml"), *overrides]
