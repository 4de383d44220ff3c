"""The in-toto statement of the training: which files came out (subject) of which base, rows, config, library and lock."""

from typing import Any

from lora_select.errors import library
from lora_select.evidence.inputs import EvidenceInputs

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://lora-select.dev/training/v1"


def training_statement(inputs: EvidenceInputs) -> dict[str, Any]:
    """An in-toto Statement v1 with an SLSA provenance v1 predicate, plain JSON.

    The subject is every adapter file. `resolvedDependencies` are the materials: base model, dataset, both of its files, config,
    library, lock, each with its SHA-256. `internalParameters` hold the digests of decision, plan and evaluation.
    """
    from lora_select import records

    folder, replay = inputs.adapter.directory.rstrip("/"), inputs.plan.replay
    subjects = [
        {"name": ref.path.removeprefix(f"{folder}/"), "digest": {"sha256": ref.sha256}} for ref in inputs.adapter.files
    ]
    materials = [
        _material("base-model", inputs.base.digest, inputs.base.source),
        _material("dataset", inputs.dataset.digest, inputs.dataset.name),
        _material("dataset/train", inputs.dataset.train_file.sha256, inputs.dataset.train_file.path),
        _material("dataset/eval", inputs.dataset.eval_file.sha256, inputs.dataset.eval_file.path),
        *([_material("replay", replay.tokens_file.sha256, replay.tokens_file.path)] if replay else []),
        _material("config", inputs.config_sha256, "config"),
        _material("library", inputs.library_sha256, "lora-select"),
        *([_material("lock", inputs.lock_sha256, "lock")] if inputs.lock_sha256 else []),
    ]
    digests = {
        "decision": records.digest(inputs.decision),
        "plan": records.digest(inputs.plan),
        "adapter": inputs.adapter.digest,
        "evaluation": records.digest(inputs.evaluation),
        **({"verdict": records.digest(inputs.verdict)} if inputs.verdict else {}),
    }
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "choice": inputs.decision.choice_key,
                    "learningRate": inputs.adapter.spec.learning_rate,
                    "steps": inputs.adapter.steps,
                    "seed": inputs.plan.seed,
                },
                "internalParameters": {"sha256": digests, "packages": dict(sorted(inputs.packages.items()))},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": {"lora-select": inputs.library_sha256}},
                "metadata": {"invocationId": inputs.run_key, "finishedOn": inputs.made.strftime("%Y-%m-%dT%H:%M:%SZ")},
            },
        },
    }


def check(statement: dict[str, Any]) -> None:
    """Parse the statement with in-toto's own library, which refuses unknown fields and empty subjects.

    Raises:
        MissingLibraryError: in-toto-attestation is not installed.
        ValueError: it is not a valid statement.
    """
    json_format = library("google.protobuf.json_format", "protobuf")
    v1 = library("in_toto_attestation.v1.statement", "in-toto-attestation")
    message = library("in_toto_attestation.v1.statement_pb2", "in-toto-attestation")
    try:
        parsed = json_format.ParseDict(statement, message.Statement())
        v1.Statement.copy_from_pb(parsed).validate()
    except Exception as error:
        raise ValueError(f"the in-toto statement is not valid: {error}") from error


def _material(name: str, sha256: str, uri: str) -> dict[str, Any]:
    return {
        "name": name,
        "uri": f"urn:lora-select:{name}",
        "digest": {"sha256": sha256},
        "annotations": {"source": uri},
    }
