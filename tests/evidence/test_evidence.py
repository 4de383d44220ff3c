"""The evidence in standard forms: each valid by its own library or schema, each holding the run's own numbers and digests."""

import dataclasses
import datetime
import json
from pathlib import Path

import mlflow_samples as samples
import pytest
from signing_keys import make_key

from lora_select import errors, records
from lora_select.audit import signature
from lora_select.errors import InputError, WorldError
from lora_select.evaluation.gate import judge
from lora_select.evaluation.policy import Policy
from lora_select.evidence import EvidenceInputs, bom, card, cost, croissant, statement, write_evidence
from lora_select.pipeline.stages.document import signed_by

HOME = Path.home() / "secret"
BASE = records.BaseModel(
    "HuggingFaceTB/SmolLM2-135M-Instruct", "abc", "/nowhere/smollm2", samples.SHA, "LlamaForCausalLM", 134_515_008, 30, 576,
    49_152, True, 8192,
)  # fmt: skip


@pytest.fixture
def inputs(tmp_path) -> EvidenceInputs:
    folder = tmp_path / "stages"
    folder.mkdir()
    adapter, profile, plan = samples.adapter(folder), samples.profile(folder), samples.plan()
    evaluation = samples.evaluation(folder, rival_loss=1.1)
    return EvidenceInputs(
        name="tweets",
        run_key="k" * 24,
        base=BASE,
        dataset=samples.dataset(folder),
        profile=profile,
        decision=samples.decision(),
        plan=plan,
        adapter=adapter,
        adapter_folder=folder / "adapter",
        proof=samples.proof(),
        evaluation=evaluation,
        cost=cost.measured(plan, adapter, BASE, profile),
        config_sha256=samples.SHA,
        library_sha256=samples.SHA,
        lock_sha256=None,
        made=datetime.datetime(2026, 11, 29, 12, 0, tzinfo=datetime.UTC),
        verdict=judge(evaluation, None, Policy()),
        licence="Apache-2.0",
    )


@pytest.fixture
def key(tmp_path) -> signature.SigningKey:
    return signature.SigningKey(*make_key(tmp_path / "signing.pem"))


def written(inputs, folder, key=None):
    folder.mkdir(exist_ok=True)
    return write_evidence(inputs, folder, dataset_folder=folder, key=key)


def test_every_form_is_written_named_and_signed(inputs, key, tmp_path):
    out = tmp_path / "out"
    made = written(inputs, out, key)
    assert made.missing == ()
    for name in ("card", "statement", "bom", "croissant", "adapter_signature", "evidence_signature"):
        ref = getattr(made, name)
        assert records.sha256_file(out / ref.path) == ref.sha256
    public = key.path.with_suffix(".pub")
    signature.verify(inputs.adapter_folder, out / "adapter.sig", public)
    signature.verify(out / "evidence", out / "evidence.sig", public)
    assert records.from_json(records.EvidenceFiles, records.to_json(made)) == made
    assert written(inputs, tmp_path / "again").bom == made.bom


def test_the_card_is_read_by_the_hub_library(inputs, tmp_path):
    from huggingface_hub import ModelCard

    made = written(inputs, tmp_path / "out")
    read = ModelCard.load(tmp_path / "out" / made.card.path)
    assert read.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read.data.to_dict()["base_model_relation"] == "adapter"
    assert (read.data.datasets, read.data.license) == (["tweets"], "Apache-2.0")
    results = {item.metric_type: item for item in read.data.eval_results}
    assert results["loss"].metric_value == 0.9
    assert "-1.650 to -1.550" in results["loss"].metric_name
    for text in ("## Limits", "plain LoRA", "kWh (estimated)", inputs.adapter.digest, "2 rows truncated"):
        assert text in read.text


def test_a_dataset_can_write_no_markup_and_a_path_stays_at_home(inputs):
    evil = dataclasses.replace(
        inputs,
        dataset=dataclasses.replace(inputs.dataset, name="<script>alert(1)</script>\n---\nbase_model: other"),
        base=dataclasses.replace(BASE, source=str(HOME / "model")),
    )
    text = card.model_card(evil)
    head, body = text.split("\n---\n", 1)
    assert "<script>" not in body
    assert str(HOME) not in text
    import yaml

    assert yaml.safe_load(head.removeprefix("---\n"))["base_model"] == "model"


def test_the_card_says_what_engines_make_of_a_folder_that_is_not_in_the_safe_form(inputs):
    assert "Served as it is" not in card.model_card(inputs)
    config = inputs.adapter_folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    (line,) = [line for line in card.model_card(inputs).splitlines() if "Served as it is" in line]
    assert "SGLang" in line
    assert "llama.cpp" in line


def test_the_card_says_what_fewer_bits_leave(inputs):
    assert "fewer bits" not in card.model_card(inputs)
    made = dataclasses.replace(inputs, evaluation=dataclasses.replace(inputs.evaluation, stored=samples.stored()))
    assert "| nf4 | 2.750 | 0.940 | 96.2 % (94.0 to 98.0) |" in card.model_card(made)


def test_the_card_says_when_examples_in_the_prompt_do_as_well(inputs):
    assert "FEW-SHOT" not in card.model_card(inputs)
    loss = inputs.evaluation.metrics["loss"]
    for tied in (True, False):
        pairs = {"loss": dataclasses.replace(loss, difference=-0.1, significant=not tied)}
        made = dataclasses.replace(
            inputs, evaluation=dataclasses.replace(inputs.evaluation, against={"few_shot": pairs})
        )
        assert ("FEW-SHOT ALREADY DOES IT. It cannot be told apart" in card.model_card(made)) == tied


def test_the_card_says_when_it_was_not_promoted(inputs):
    refused = judge(dataclasses.replace(inputs.evaluation, metrics={"loss": samples.pair(2.5, 2.9)}), None, Policy())
    assert "The gate did not promote it (refuse)" in card.model_card(dataclasses.replace(inputs, verdict=refused))
    assert "No gate has judged" in card.model_card(dataclasses.replace(inputs, verdict=None))


def test_the_bom_holds_metrics_energy_and_digests(inputs, tmp_path):
    made = written(inputs, tmp_path / "out")
    document = json.loads((tmp_path / "out" / made.bom.path).read_text())
    component = document["metadata"]["component"]
    assert {item["name"]: item["hashes"][0]["content"] for item in component["components"]} == {
        ref.path: ref.sha256 for ref in inputs.adapter.files
    }
    metrics = {item["type"]: item for item in component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["loss, nats"]["value"] == "0.9"
    assert metrics["loss, nats"]["confidenceInterval"] == {"lowerBound": "0.85", "upperBound": "0.95"}
    energy = component["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"][0]
    assert energy["activityEnergyCost"]["value"] == inputs.cost.energy.kwh
    purls = {item.get("purl") for item in document["components"]}
    assert any(purl and purl.startswith("pkg:pypi/torch@") for purl in purls)


def test_an_invalid_bom_is_refused(inputs):
    document = bom.bill_of_materials(inputs)
    bom.check(document)
    document["metadata"]["component"]["type"] = "poem"
    with pytest.raises(ValueError, match=r"not CycloneDX 1\.7"):
        bom.check(document)


def test_croissant_is_read_back_with_its_columns(inputs, tmp_path):
    import mlcroissant
    import pyarrow
    import pyarrow.parquet

    data = tmp_path / "data"
    data.mkdir()
    for ref in (inputs.dataset.train_file, inputs.dataset.eval_file):
        pyarrow.parquet.write_table(pyarrow.table({"row_id": ["a"], "messages": ["[]"]}), data / ref.path)
    columns = croissant.parquet_columns(data, inputs)
    (data / "croissant.json").write_text(json.dumps(croissant.dataset_card(inputs, columns), default=str))
    read = mlcroissant.Dataset(jsonld=data / "croissant.json").metadata
    assert [item.sha256 for item in read.distribution] == [
        inputs.dataset.train_file.sha256, inputs.dataset.eval_file.sha256,
    ]  # fmt: skip
    assert [field.name for field in read.record_sets[0].fields] == ["row_id", "messages"]
    assert not read.issues.errors


def test_reference_text_that_was_trained_on_is_told_and_is_a_material(inputs):
    beside = records.Replay(
        900,
        {"prose": 7, str(HOME / "chats.jsonl"): 5},
        12,
        records.FileRef("replay_tokens.parquet", samples.SHA, 9),
    )
    mixed = dataclasses.replace(inputs, plan=dataclasses.replace(inputs.plan, replay=beside))
    text = card.model_card(mixed)
    assert "12 rows of reference text were trained on beside them: 5 of chats.jsonl, 7 of prose." in text
    assert "Reference text was trained on" in text.partition("## Limits")[2]
    assert "trained on beside" not in card.model_card(inputs)
    materials = statement.training_statement(mixed)["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [item["digest"]["sha256"] for item in materials if item["name"] == "replay"] == [samples.SHA]


def test_the_statement_names_materials_and_products(inputs):
    made = statement.training_statement(inputs)
    statement.check(made)
    assert {item["name"]: item["digest"]["sha256"] for item in made["subject"]} == {
        ref.path.removeprefix("adapter/"): ref.sha256 for ref in inputs.adapter.files
    }
    materials = {item["name"] for item in made["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert materials == {"base-model", "dataset", "dataset/train", "dataset/eval", "config", "library"}
    locked = statement.training_statement(dataclasses.replace(inputs, lock_sha256=samples.SHA))
    assert len(locked["predicate"]["buildDefinition"]["resolvedDependencies"]) == 7
    for broken in ({**made, "subject": []}, {**made, "subject": [{"name": "a"}]}, {**made, "mood": "good"}):
        with pytest.raises(ValueError, match="in-toto"):
            statement.check(broken)


@pytest.mark.parametrize("change", ["a byte", "a new file", "a file gone", "the signature", "another key"])
def test_a_signature_notices(inputs, key, tmp_path, change):
    made = written(inputs, tmp_path / "out", key)
    sig, public = tmp_path / "out" / made.adapter_signature.path, key.path.with_suffix(".pub")
    file = inputs.adapter_folder / "adapter_model.safetensors"
    names = ".*"
    if change == "a byte":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        names = "adapter_model.safetensors"
    elif change == "a new file":
        (inputs.adapter_folder / ".gitattributes").write_text("x")
        names = "gitattributes"
    elif change == "a file gone":
        file.unlink()
        names = "adapter_model.safetensors"
    elif change == "the signature":
        bundle = json.loads(sig.read_text())
        payload = bundle["dsseEnvelope"]["payload"]
        bundle["dsseEnvelope"]["payload"] = ("A" if payload[40] != "A" else "B").join((payload[:40], payload[41:]))
        sig.write_text(json.dumps(bundle))
    else:
        public = make_key(tmp_path / "other.pem")[0].with_suffix(".pub")
    with pytest.raises(WorldError, match=f"does not hold.*{names}"):
        signature.verify(inputs.adapter_folder, sig, public)


def test_keys_come_by_path_from_the_environment_and_are_never_shown(inputs, tmp_path):
    path, password = make_key(tmp_path / "locked.pem", "correct horse")
    environment = {signature.SIGNING_KEY: str(path), signature.SIGNING_PASSWORD: password}
    key = signature.signing_key(environment)
    assert key is not None
    assert "locked" not in repr(key)
    assert "horse" not in repr(key)
    made = written(inputs, tmp_path / "out", key)
    text = "".join(file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file()) + records.to_json(made)
    assert "horse" not in text
    assert str(path) not in text
    sig = tmp_path / "out" / "adapter.sig"
    assert signature.require(inputs.adapter_folder, sig, {}) == "not asked for"
    asked = {signature.VERIFY_KEY: str(path.with_suffix(".pub"))}
    assert signature.require(inputs.adapter_folder, sig, asked) == "verified"
    sig.unlink()
    with pytest.raises(WorldError, match="is not signed"):
        signature.require(inputs.adapter_folder, sig, asked)


def test_evidence_of_another_key_is_other_evidence(tmp_path, monkeypatch):
    keys = [make_key(tmp_path / f"{name}.pem", "correct horse")[0] for name in ("ann", "bob")]
    found = []
    for path in keys:
        monkeypatch.setenv(signature.SIGNING_KEY, str(path))
        found.append(signed_by())
    assert found == [records.sha256_file(path) for path in keys]
    monkeypatch.delenv(signature.SIGNING_KEY)
    assert signed_by() is None


@pytest.mark.parametrize("case", ["no file", "wrong password", "no key", "no public file"])
def test_a_key_that_cannot_be_used_is_one_sentence_without_it(inputs, tmp_path, case):
    path, _ = make_key(tmp_path / "locked.pem", "correct horse")
    (tmp_path / "rsa.pem").write_text("not a key")
    missing = str(tmp_path / "missing.pem")
    uses = {
        "no file": lambda: signature.signing_key({signature.SIGNING_KEY: missing}),
        "no public file": lambda: signature.verify_key({signature.VERIFY_KEY: missing}),
        "wrong password": lambda: written(inputs, tmp_path / "out", signature.SigningKey(path, "battery staple")),
        "no key": lambda: written(inputs, tmp_path / "out", signature.SigningKey(tmp_path / "rsa.pem")),
    }
    with pytest.raises(InputError) as error:
        uses[case]()
    assert "LORA_SELECT_" in str(error.value)
    assert "staple" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_without_the_libraries_the_rest_is_written_and_the_pip_line_said(inputs, key, tmp_path, monkeypatch):
    """The libraries are made unfindable as they are where they were not installed."""

    def gone(module, package):
        raise errors.MissingLibraryError(f"{package} is not installed: pip install 'lora-select[evidence]'")

    for module in (bom, croissant, signature, statement):
        monkeypatch.setattr(module, "library", gone)
    made = written(inputs, tmp_path / "out", key)
    assert (made.bom, made.croissant, made.adapter_signature, made.signed_by) == (None, None, None, None)
    assert len(made.missing) == 4
    assert all("pip install 'lora-select[evidence]'" in text for text in made.missing)
    assert {file.name for file in (tmp_path / "out" / "evidence").iterdir()} == {
        "README.md", "cost.json", "training.intoto.json",
    }  # fmt: skip


def test_an_old_signature_does_not_outlive_new_evidence(inputs, key, tmp_path):
    written(inputs, tmp_path / "out", key)
    made = written(inputs, tmp_path / "out")
    assert made.adapter_signature is None
    assert not (tmp_path / "out" / "adapter.sig").exists()
    assert any("nothing was signed" in text for text in made.missing)
