"""The page a person reads: every number it claims, bad news in words, nothing of the data taken for HTML, no network."""

import base64
import dataclasses
import html
import json
import re

import mlflow_samples as samples
import pytest
from report_samples import BASE, FORGOT, HIGHER, HOSTILE, LOWER, MATCHED, TIE, pair, report_inputs

from lora_select import records
from lora_select.evaluation.wording import in_order
from lora_select.report import plots
from lora_select.report.report import number, sentence, write_report
from lora_select.report.verdict import sentences


@pytest.fixture
def inputs(tmp_path):
    return report_inputs(tmp_path / "stages")


def test_the_page_says_what_the_training_was_expected_to_use_and_used(inputs, tmp_path):
    _, text = page(inputs, tmp_path)
    assert "energy of the training (kWh) 0.02, estimated 0.031, measured" in text
    assert "floating-point operations of the training 2e+13 2e+13" in text
    assert "price of the training" not in text
    priced = tuple(dataclasses.replace(cost, money=money) for cost, money in zip(inputs.costs, (1.5, 2.0), strict=True))
    _, text = page(dataclasses.replace(inputs, costs=priced), tmp_path)
    assert "price of the training (EUR) 1.50 2.00" in text


def changed(inputs, **found):
    return dataclasses.replace(inputs, records={**inputs.records, **found})


def page(inputs, tmp_path):
    """The page's source, and what a person reads of it."""
    out = tmp_path / "report"
    out.mkdir(exist_ok=True)
    made = write_report(inputs, out)
    source = (out / made.file.path).read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", source, flags=re.DOTALL)
    return source, html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_the_merged_model_in_fewer_bits_is_one_small_table(inputs, tmp_path):
    _, text = page(inputs, tmp_path)
    assert "fewer bits" not in text
    metrics = {"loss": pair(0.5522, 0.58, 0.01, 0.04), "exact_match": MATCHED}
    found = (
        records.StoredGain("nf4", 3.491, metrics, 0.962, (0.94, 0.98)),
        records.StoredGain("q4_0", 3.5, metrics, None, None),
    )
    _, text = page(
        changed(inputs, evaluation=dataclasses.replace(inputs.records["evaluation"], stored=found)), tmp_path
    )
    assert "stored as base with adapter of the gain left, 95 % interval exact match" in text
    assert "as measured above 3.007 0.552 34.4 % nf4 3.491 0.580 96.2 % (94.0 to 98.0) 34.4 %" in text
    assert "q4_0 3.500 0.580 not told 34.4 %" in text


@pytest.mark.parametrize(("loss", "does_it"), [(LOWER, False), (TIE, True)])
def test_its_first_lines_say_whether_examples_in_the_prompt_do_it(inputs, tmp_path, loss, does_it):
    against = {"few_shot": {"loss": loss, "exact_match": MATCHED}}
    evaluation = dataclasses.replace(inputs.records["evaluation"], against=against)
    source, text = page(changed(inputs, evaluation=evaluation, few_shot=samples.few_shot(tmp_path)), tmp_path)
    first = text.partition("Before and after")[0]
    assert ("FEW-SHOT ALREADY DOES IT. It cannot be told apart" in first) == does_it
    assert ("It is better than the untrained model with examples in its prompt" in first) == (not does_it)
    assert ('class="verdict bad"' in source) == does_it
    assert text.count("of 32: 0.0 % there") == 1


def test_every_number_of_the_records_is_there(inputs, tmp_path):
    _, text = page(inputs, tmp_path)
    found = inputs.records
    dataset, decision, adapter = found["dataset"], found["decision"], found["adapter"]
    for item in (LOWER, TIE, FORGOT):
        assert f"{item.base:.3f} {item.adapted:.3f} {item.difference:+.3f}" in text
        assert f"{item.interval[0]:+.3f} to {item.interval[1]:+.3f} {item.rows}" in text
    assert "0.0 % 34.4 % +34.4 pp +18.8 to +50.0 pp 32" in text
    assert text.index("held-out loss (nats/token)") < text.index("exact match")
    for candidate in decision.candidates:
        assert f"{candidate.key} {candidate.spec.num_parameters:,}" in text
        assert f"{candidate.score:.4f} {candidate.score_se:.4f}" in text
    for words in (*decision.reasons, *(reason for c in decision.candidates for reason in c.rejected)):
        assert sentence(words) in text
    for rejected in dataset.rejected:
        assert f"{rejected.reason} {rejected.count} {', '.join(rejected.examples)}" in text
    for split in (found["profile"].train, found["profile"].eval):
        assert (
            f"{split.rows:,} {split.tokens:,} {split.label_tokens:,} {split.length.p50} {split.length.maximum}" in text
        )
        assert f"{split.rows_truncated} {split.label_tokens_lost} {split.rows_without_labels}" in text
    assert f"{adapter.final_loss:.3f}" in text
    assert f"{found['plan'].total_steps} {adapter.steps}" in text
    assert f"{found['proof'].tensors} finite tensors" in text
    assert "It is champion of tweets, version 1." in text
    for digest in (dataset.digest, BASE.digest, adapter.digest, dataset.sources[0].sha256):
        assert digest in text
    assert re.search(r"torch \d+\.\d+.*transformers \d+\.\d+.*peft \d+\.\d+", text)


def test_rows_are_text_and_never_html(inputs, tmp_path):
    source, text = page(inputs, tmp_path)
    assert HOSTILE in text
    assert "<script" not in source
    assert "&lt;script&gt;" in source


def test_the_page_stands_alone(inputs, tmp_path):
    source, _ = page(inputs, tmp_path)
    assert re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)([^\"]*)", source) == [inputs.link]
    assert "url(" not in source
    assert "@import" not in source
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", source)
    assert len(pictures) == 5
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


def test_same_records_same_bytes(inputs, tmp_path):
    first, _ = page(inputs, tmp_path)
    assert page(inputs, tmp_path)[0] == first


def test_samples_say_which_answers_are_right(inputs, tmp_path):
    source, text = page(inputs, tmp_path)
    assert "1 of 2 answers are right with the adapter, 0 without" in text
    assert text.count("✓ exact") == 1
    assert "(nothing)" in text
    assert source.count('class="right"') == 1


def test_an_answer_of_line_breaks_alone_fills_no_page(inputs, tmp_path):
    sample = records.Sample("q", "yes", 96 * "\n", "yes\n\n \n\tno")
    evaluation = dataclasses.replace(inputs.records["evaluation"], samples=(sample,))
    source, text = page(changed(inputs, evaluation=evaluation), tmp_path)
    assert "(96 line breaks)" in text
    assert "yes (3 line breaks)" in text
    assert "\n\n\n\n" not in source


def test_the_first_box_is_one_sentence_and_the_role_and_no_sentence_is_lost(inputs, tmp_path):
    source, text = page(inputs, tmp_path)
    (box,) = re.findall(r'<p class="verdict">(.*?)</p>', source)
    answer, role = re.fullmatch(r"(.*?)<small>(.*)</small>", html.unescape(box)).groups()
    found = inputs.records
    first, *others = sentences(found["decision"], found["evaluation"], found["promotion"])
    assert (answer, role) == (first, "It is champion of tweets, version 1.")
    assert all(text.count(other) == 1 for other in others[:-1])
    assert text.index("held-out loss (nats/token)") < text.index(others[0])


def test_scores_that_were_not_used_are_folded_away(inputs, tmp_path):
    decision = inputs.records["decision"]
    for abstained in (True, False):
        told = changed(inputs, decision=dataclasses.replace(decision, abstained=abstained))
        source, _ = page(told, tmp_path)
        before, after = source.split('alt="Score of every candidate"')
        assert (before.count("<details>") > before.count("</details>")) == abstained
        assert "</details>" in after


def test_the_looks_at_the_kept_rows_are_drawn_beside_the_training_loss(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": n, "loss": 2.0, "learning_rate": 1e-4}) + "\n" for n in range(1, 9)))
    bare = plots.training(metrics, tmp_path / "bare.png").read_bytes()
    looks = records.Validation(10, (0, 4, 8), (3.0, 1.0, 1.2), 0.1, 4, stopped_early=False)
    drawn = plots.training(metrics, tmp_path / "looks.png", looks).read_bytes()
    other = plots.training(metrics, tmp_path / "other.png", dataclasses.replace(looks, chosen_step=8)).read_bytes()
    assert len({bare, drawn, other}) == 3


def test_the_least_a_run_can_hold(inputs, tmp_path):
    """No rival, no questions, no link, no rejected row, no layer with a spectrum, one step, no time."""
    found = inputs.records
    evaluation = dataclasses.replace(found["evaluation"], metrics={"loss": LOWER}, against={}, samples=(), notes=())
    metrics = tmp_path / "stages" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    few = changed(
        inputs,
        evaluation=evaluation,
        dataset=dataclasses.replace(found["dataset"], rejected=()),
        profile=dataclasses.replace(found["profile"], warnings=()),
        spectra=dataclasses.replace(found["spectra"], layers=(), skipped_layers={}),
        decision=dataclasses.replace(found["decision"], candidates=(), abstained=True, reasons=()),
        adapter=dataclasses.replace(found["adapter"], seconds=0.0, steps=1),
    )
    source, text = page(dataclasses.replace(few, link=""), tmp_path)
    assert "MLflow run" not in text
    assert "What it says" not in text
    assert "exact match" not in text
    assert "No row was left out." in text
    assert "The rule abstained" in text
    assert "href=" not in source


def test_failures_are_told(inputs, tmp_path):
    found = inputs.records
    proof = dataclasses.replace(found["proof"], finite=False, nonzero_b=False, passed=False, faults=("logits differ",))
    evaluation = dataclasses.replace(found["evaluation"], metrics={"loss": HIGHER})
    source, text = page(changed(inputs, proof=proof, evaluation=evaluation), tmp_path)
    assert "RAISES held-out loss from 3.007 to 3.400" in text
    assert "NOT ALL FINITE" in text
    assert "B ZERO" in text
    assert "Logits differ." in text
    assert 'class="verdict bad"' in source
    assert '"word worse"' in source


def test_words():
    assert list(in_order({"new": TIE, "valid_json": TIE, "loss": TIE})) == ["loss", "valid_json", "new"]
    assert [number(x) for x in (0, 12, 1234567, 4000.0, 0.00031, 2.5)] == [
        "0",
        "12",
        "1,234,567",
        "4,000",
        "0.00031",
        "2.5",
    ]
    assert [sentence(x) for x in ("it fits", "r 16 is", "fp32: no", "Done.")] == ["It fits.", "r 16 is.", "fp32: no.", "Done."]  # fmt: skip


def test_candidates_are_told_apart(tmp_path):
    """Chosen, tied and ruled out look different; a rank that was not measured is not drawn."""
    decision = samples.decision()
    chosen, tied, out, unknown, other = decision.candidates
    tied = dataclasses.replace(tied, rejected=("tied: no statistic separates it",))
    unknown = dataclasses.replace(unknown, score=0.0, score_se=1.0)
    shades = {8: "#123456"}
    looks = [plots._look(item, decision, shades)["fmt"] for item in (chosen, tied, out)]
    assert looks == ["D", "o", "x"]
    full = plots.candidates(decision, tmp_path / "full.png").read_bytes()
    less = dataclasses.replace(decision, candidates=(chosen, tied, out, unknown, other))
    assert plots.candidates(less, tmp_path / "less.png").read_bytes() != full


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, -2.0), (1.0, -1.0), ()])
@pytest.mark.filterwarnings("error")
def test_a_spectrum_without_signal_is_drawn(tmp_path, values):
    spectra = samples.spectra(tmp_path)
    errors = tuple(abs(value) / 2 for value in values)
    layer = dataclasses.replace(spectra.layers[0], heldout_values=values, heldout_se=errors, signal_rank=0)
    made = dataclasses.replace(spectra, layers=(layer,))
    assert plots.spectrum(made, tmp_path / "spectrum.png").stat().st_size > 1000
    assert plots.signal_ranks(made, tmp_path / "ranks.png").stat().st_size > 1000


@pytest.mark.parametrize("count", [1, 2, 40])
def test_figures_of_one_row_and_of_many(tmp_path, count):
    rows = [{"row_id": str(n), "label_tokens": 2, "base_loss": 3.0, "adapted_loss": 3.0 + n} for n in range(count)]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"losses": rows}))
    assert plots.before_and_after(file, tmp_path / "rows.png").stat().st_size > 1000
