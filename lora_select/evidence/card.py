"""The model card: a Hugging Face README.md with its metadata block, results with intervals, limits and cost."""

from collections.abc import Mapping

from lora_select import serving
from lora_select.evaluation import wording
from lora_select.evidence import cost
from lora_select.evidence.inputs import EvidenceInputs
from lora_select.records import Evaluation, MetricComparison
from lora_select.report.verdict import changed, effect, examples, few_shot_does_it, interval, title, value
from lora_select.variants import title as variant_title


def model_card(inputs: EvidenceInputs) -> str:
    """The whole text of README.md; the metadata block is written by `huggingface_hub`, so the hub reads it."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=_source(inputs.base.source),
        base_model_relation="adapter",
        datasets=[inputs.dataset.name],
        library_name="peft",
        license=inputs.licence,
        pipeline_tag="text-generation",
        tags=["lora", inputs.adapter.spec.variant, "lora-select"],
        model_name=inputs.name,
        eval_results=_results(inputs),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(inputs)}"


def _results(inputs: EvidenceInputs) -> list:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=_slug(inputs.dataset.name),
            dataset_name=f"{_plain(inputs.dataset.name)}, held-out rows",
            dataset_split="eval",
            dataset_revision=inputs.dataset.digest,
            metric_type=_slug(metric),
            metric_name=f"{title(metric, pair)}, 95 % interval of the change {interval(pair)}, {pair.rows} rows",
            metric_value=round(pair.adapted, 6),
        )
        for metric, pair in wording.in_order(inputs.evaluation.metrics).items()
    ]


def _body(inputs: EvidenceInputs) -> str:
    spec, adapter = inputs.adapter.spec, inputs.adapter
    parts = [
        f"# {_plain(inputs.name)}",
        f"A {variant_title(spec.variant)} adapter of {_source(inputs.base.source)} for {_plain(inputs.dataset.name)}: r {spec.r}, alpha "
        f"{spec.lora_alpha}, learning rate {spec.learning_rate:.2g}, {spec.num_parameters:,} parameters. {_answer(inputs)}",
        "## Results",
        _table("base model", inputs.evaluation.metrics),
        *(
            f"Against {wording.rival(name, inputs.evaluation.champion_version)}:\n\n{_table(wording.rival(name), pairs)}"
            for name, pairs in sorted(inputs.evaluation.against.items())
        ),
        *_stored(inputs.evaluation),
        f"Loss on text that has nothing to do with the task changed by {changed(inputs.evaluation.forgetting)} "
        f"{inputs.evaluation.forgetting.unit}.",
        "Every interval is a paired bootstrap over the same rows, at 95 %.",
        "## Training",
        f"{adapter.steps} steps of {inputs.plan.effective_batch_size} rows, {adapter.tokens:,} tokens, {inputs.plan.precision}, "
        f"{inputs.plan.num_processes} {inputs.plan.device} process{'es' * (inputs.plan.num_processes != 1)}, ZeRO-"
        f"{adapter.zero_stage}. Cost: {cost.words(inputs.cost)}.",
        "\n".join(f"- {text}" for text in inputs.cost.basis),
        "Why this adapter:",
        "\n".join(f"- {_plain(reason)}" for reason in inputs.decision.reasons),
        "## Data",
        f"{inputs.dataset.train_rows} training and {inputs.dataset.eval_rows} held-out rows of {_plain(inputs.dataset.name)}; "
        f"{sum(item.count for item in inputs.dataset.rejected)} rows were left out. Split: {_plain(inputs.dataset.eval_source)}. "
        f"{inputs.profile.eval_rows_in_train} held-out rows are also training rows.{_replayed(inputs)}",
        "## Limits",
        "\n".join(f"- {_plain(text)}" for text in _limits(inputs)),
        "## Use",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({_source(inputs.base.source)!r})\n"
        'model = PeftModel.from_pretrained(base, "this folder")\n```',
        "## Identity",
        "\n".join(
            f"- {name}: `{value}`"
            for name, value in (
                ("base model", inputs.base.digest),
                ("dataset", inputs.dataset.digest),
                ("adapter", adapter.digest),
                ("config", inputs.config_sha256),
                ("library", inputs.library_sha256),
                ("lock", inputs.lock_sha256 or "none"),
            )
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _replayed(inputs: EvidenceInputs) -> str:
    made = inputs.plan.replay
    if made is None:
        return ""
    sets = ", ".join(f"{rows} of {_plain(_source(name))}" for name, rows in sorted(made.rows_of.items()))
    return f" {made.rows} rows of reference text were trained on beside them: {sets}."


def _answer(inputs: EvidenceInputs) -> str:
    loss = inputs.evaluation.metrics.get("loss")
    said = examples(inputs.evaluation) if few_shot_does_it(inputs.evaluation) else ""
    return " ".join(filter(None, [effect("It", loss) if loss else "", said]))


def _table(before: str, pairs: Mapping[str, MetricComparison]) -> str:
    lines = [f"| | {before} | this adapter | change, 95 % interval | rows |", "|---|---|---|---|---|"]
    for name, pair in wording.in_order(pairs).items():
        base, adapted = value(pair.base, pair.unit), value(pair.adapted, pair.unit)
        lines.append(f"| {title(name, pair)} | {base} | {adapted} | {changed(pair)} | {pair.rows} |")
    return "\n".join(lines)


def _stored(evaluation: Evaluation) -> list[str]:
    """The merged model in fewer bits, where it was measured."""
    if not evaluation.stored:
        return []
    lines = ["| stored as | base | merged | of the gain left, 95 % interval |", "|---|---|---|---|"]
    for one in evaluation.stored:
        lines.append(f"| {one.form} | {one.base_loss:.3f} | {one.metrics['loss'].adapted:.3f} | {wording.left(one)} |")
    return ["Merged into the base and stored in fewer bits, held-out loss in nats/token:\n\n" + "\n".join(lines)]


def _limits(inputs: EvidenceInputs) -> list[str]:
    limits = [*inputs.profile.warnings, *inputs.evaluation.notes]
    limits += [f"Served as it is: {line}." for line in serving.warnings(serving.read_folder(inputs.adapter_folder))]
    if inputs.verdict is None:
        limits.append("No gate has judged this adapter.")
    elif inputs.verdict.answer != "promote":
        limits += [
            f"The gate did not promote it ({inputs.verdict.answer}): {reason}" for reason in inputs.verdict.reasons
        ]
    if inputs.plan.replay:
        limits.append(
            "Reference text was trained on: on other text of its kind the loss says little of what else was kept."
        )
    if inputs.cost.energy.source != "measured":
        limits.append(f"Energy is estimated, not measured: {inputs.cost.energy.basis}.")
    return [*limits, "Measured on held-out rows of one dataset; what it does on other input was not measured."]


def _source(source: str) -> str:
    """A hub id as it is; of a local folder only its name, because a card is published and a path is not."""
    return (
        source
        if source.count("/") <= 1 and not source.startswith((".", "/", "~"))
        else source.rstrip("/").split("/")[-1]
    )


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)[:96] or "unnamed"


def _plain(text: str) -> str:
    """One line in which a dataset's words can open no tag and no fence."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'").replace("|", "&#124;")
