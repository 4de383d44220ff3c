"""Stages that choose: the spectral pass over real microbatches, and the pure decision."""

import random

from lora_select import models
from lora_select.data import tokens
from lora_select.errors import InputError
from lora_select.records import BaseModel, DatasetProfile, Decision, SelectionInputs, Spectra
from lora_select.selection.select import select as select_library
from lora_select.spectral.analyze import analyze as analyze_library
from lora_select.variants import CATALOGUE
from tasks.stage import Context, Stage
from tasks.store import StageRef


def _analyze(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    microbatches: int,
    microbatch_size: int,
    sketch_size: int,
    seed: int,
    device: str,
) -> Spectra:
    measured = context.load(profile, DatasetProfile)
    rows = tokens.read_rows(context.folder_of(profile) / measured.train_tokens_file.path)
    if len(rows) < 4 * microbatch_size:
        raise InputError(
            f"the spectral pass needs at least {4 * microbatch_size} training rows (4 microbatches of "
            f"`analysis.microbatch_size` = {microbatch_size}), got {len(rows)}; lower it or bring more rows"
        )
    random.Random(seed).shuffle(rows)
    pad_id = models.pad_id(models.load_tokenizer(base.path))
    count = min(microbatches, len(rows) // microbatch_size)
    batches = [
        tokens.collate(rows[start * microbatch_size : (start + 1) * microbatch_size], pad_id) for start in range(count)
    ]
    return analyze_library(
        models.load_model(base.path, dtype="float32", device=device),
        batches,
        loss_fn=tokens.label_loss,
        variants=CATALOGUE,
        sketch_size=sketch_size,
        seed=seed,
        folder=context.folder,
        dataset_digest=measured.dataset_digest,
        model_digest=base.digest,
        progress=context.report,
    )


def _select(context: Context, *, profile: StageRef, spectra: StageRef, constraints: SelectionInputs) -> Decision:
    return select_library(context.load(profile, DatasetProfile), context.load(spectra, Spectra), constraints)


analyze = Stage("analyze", Spectra, _analyze, retries=1)
select = Stage("select", Decision, _select)
