"""CycloneDX 1.7 ML-BOM: base, dataset and libraries that an adapter is made of, with a modelCard; checked against the schema."""

import json
import uuid
from typing import Any

from lora_select.errors import library
from lora_select.evidence.inputs import EvidenceInputs
from lora_select.records import Adapter, MetricComparison

VERSION = "1.7"


def bill_of_materials(inputs: EvidenceInputs) -> dict[str, Any]:
    """The BOM as plain JSON. Its serial number is made from the adapter's digest: the same run gives the same text."""
    adapter, base, data = f"adapter:{inputs.name}", f"model:{inputs.base.source}", f"data:{inputs.dataset.name}"
    packages = [f"pkg:pypi/{name}@{version}" for name, version in sorted(inputs.packages.items())]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, inputs.adapter.digest)}",
        "version": 1,
        "metadata": {
            "timestamp": inputs.made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {
                "components": [{"type": "application", "name": "lora-select", "hashes": _hash(inputs.library_sha256)}]
            },
            "component": _adapter(inputs, adapter),
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": base,
                "name": inputs.base.source,
                **({"version": inputs.base.revision} if inputs.base.revision else {}),
                "hashes": _hash(inputs.base.digest),
                "modelCard": {
                    "modelParameters": {"task": "text-generation", "modelArchitecture": inputs.base.architecture}
                },
            },
            {
                "type": "data",
                "bom-ref": data,
                "name": inputs.dataset.name,
                "hashes": _hash(inputs.dataset.digest),
                "data": [{"type": "dataset", "name": inputs.dataset.name, "description": _rows(inputs)}],
            },
            *(
                {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
                for (name, version), purl in zip(sorted(inputs.packages.items()), packages, strict=True)
            ),
        ],
        "dependencies": [{"ref": adapter, "dependsOn": [base, data, *packages]}],
    }


def check(document: dict[str, Any]) -> None:
    """Hold a BOM against the schema that ships with `cyclonedx-python-lib`.

    Raises:
        MissingLibraryError: it is not installed.
        ValueError: the BOM is not valid; the message names the place.
    """
    validation = library("cyclonedx.validation.json", "cyclonedx-python-lib")
    schema = library("cyclonedx.schema", "cyclonedx-python-lib")
    fault = validation.JsonStrictValidator(schema.SchemaVersion.V1_7).validate_str(json.dumps(document))
    if fault is not None:
        data = getattr(fault, "data", fault)
        raise ValueError(
            f"the ML-BOM is not CycloneDX {VERSION}: {getattr(data, 'json_path', '')} {getattr(data, 'message', data)}"
        )


def _adapter(inputs: EvidenceInputs, reference: str) -> dict[str, Any]:
    spec = inputs.adapter.spec
    energy = inputs.cost.energy
    return {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": inputs.name,
        "version": inputs.promotion.version if inputs.promotion else inputs.adapter.digest[:12],
        "description": f"{spec.variant} adapter, r {spec.r}, of {inputs.base.source}",
        "hashes": _hash(inputs.adapter.digest),
        **({"licenses": [{"license": {"id": inputs.licence}}]} if inputs.licence else {}),
        "components": _files(inputs.adapter),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": inputs.base.architecture,
                "datasets": [{"ref": f"data:{inputs.dataset.name}"}],
                "inputs": [{"format": "string"}],
                "outputs": [{"format": "string"}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [_metric(name, pair) for name, pair in sorted(inputs.evaluation.metrics.items())]
                + [_metric("forgetting", inputs.evaluation.forgetting)]
            },
            "considerations": {
                "technicalLimitations": [*inputs.profile.warnings, *inputs.evaluation.notes],
                "environmentalConsiderations": {
                    "energyConsumptions": [
                        {
                            "activity": "training",
                            "energyProviders": [
                                {
                                    "organization": {"name": "not known"},
                                    "energySource": "unknown",
                                    "energyProvided": {"value": energy.kwh, "unit": "kWh"},
                                }
                            ],
                            "activityEnergyCost": {"value": energy.kwh, "unit": "kWh"},
                            "properties": [
                                {"name": "lora-select:energy-source", "value": energy.source},
                                {"name": "lora-select:energy-basis", "value": energy.basis},
                            ],
                        }
                    ]
                },
            },
        },
        "properties": [
            {"name": "lora-select:run", "value": inputs.run_key},
            {"name": "lora-select:decision", "value": inputs.decision.choice_key},
            {"name": "lora-select:flops", "value": f"{inputs.cost.flops:.4g}"},
            {"name": "lora-select:device-hours", "value": f"{inputs.cost.device_hours:.4g}"},
        ],
    }


def _files(adapter: Adapter) -> list[dict[str, Any]]:
    return [{"type": "file", "name": ref.path, "hashes": _hash(ref.sha256)} for ref in adapter.files]


def _metric(name: str, pair: MetricComparison) -> dict[str, Any]:
    """CycloneDX has one interval a metric, of its value: the change's interval is laid around the value of the base."""
    low, high = (pair.base + bound for bound in pair.interval)
    return {
        "type": f"{name}, {pair.unit}",
        "value": f"{pair.adapted:.6g}",
        "slice": "held-out rows" if name != "forgetting" else "reference text",
        "confidenceInterval": {"lowerBound": f"{low:.6g}", "upperBound": f"{high:.6g}"},
    }


def _rows(inputs: EvidenceInputs) -> str:
    return f"{inputs.dataset.train_rows} training rows, {inputs.dataset.eval_rows} held-out rows"


def _hash(value: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": value}]
