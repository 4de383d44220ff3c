"""Stages that choose: the spectral pass over real microbatches, and the pure decision."""

from lora_select import models
from lora_select.data import tokens
from lora_select.data.microbatches import draw
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
    batches = draw(
        rows,
        microbatches=microbatches,
        size=microbatch_size,
        seed=seed,
        pad_id=models.pad_id(models.load_tokenizer(base.path)),
    )
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
