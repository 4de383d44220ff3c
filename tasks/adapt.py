"""Stages that make the adapter: plan, DeepSpeed training, proof in a new process."""

from pathlib import Path
from typing import Any

from lora_select.data import tokens as _tokens  # noqa: F401  (kept light: no torch at import)
from lora_select.records import Adapter, AdapterSpec, BaseModel, DatasetProfile, Decision, Proof, Spectra, TrainingPlan
from lora_select.training import launch, plan as plan_library, prove as prove_library
from lora_select.variants.initialise import write_initial_factors
from tasks import store
from tasks.progress import Reporter
from tasks.stage import Stage
from tasks.store import StageRef
