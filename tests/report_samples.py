"""What a report is made from, for the tests of the page and for those that look at it in a browser."""

import dataclasses
import json
from pathlib import Path

import mlflow_samples as samples

from lora_select import records
from lora_select.records import MetricComparison
from lora_select.report.report import ReportInputs

BASE = records.BaseModel("some/model", "abc", "/nowhere", "f" * 64, "LlamaForCausalLM", 134_515_008, 30, 576, 49152, True, 8192)  # fmt: skip
HOSTILE = '<script>alert(1)</script> & "quoted" {{ 7 * 7 }}'


def pair(base, adapted, low, high, *, unit="nats/token", better="lower", rows=86):
    return MetricComparison(base, adapted, adapted - base, (low, high), rows, unit, better, low > 0 or high < 0)


LOWER = pair(3.0071, 0.5522, -2.6483, -2.2855)
TIE = pair(0.5611, 0.5522, -0.0301, 0.0122)
HIGHER = pair(3.0071, 3.4001, 0.2002, 0.5877)
FORGOT = pair(3.1131, 3.2092, 0.0735, 0.1180, rows=32)
KEPT = pair(3.1131, 3.1135, -0.002, 0.003, rows=32)
MATCHED = pair(0.0, 0.34375, 0.1875, 0.5, unit="of rows", better="higher", rows=32)


def report_inputs(folder: Path) -> ReportInputs:
    """What a page is made from; the stages' files are written below `folder`."""
    folder.mkdir()
    rows = [{"row_id": str(n), "label_tokens": 10, "base_loss": 30.0 + n, "adapted_loss": 5.0 + n} for n in range(9)]
    evaluation = dataclasses.replace(
        samples.evaluation(folder),
        metrics={"exact_match": MATCHED, "loss": LOWER},
        against={"plain_lora": {"loss": TIE}},
        forgetting=FORGOT,
        samples=(records.Sample(HOSTILE, '{"a": 1}', HOSTILE, '{ "a":1 }'), records.Sample("q", "yes", "", "no")),
        rows_file=samples.write(folder, "rows.json", json.dumps({"losses": rows, "answers": []})),
    )
    found = {
        "dataset": samples.dataset(folder),
        "profile": samples.profile(folder),
        "spectra": samples.spectra(folder),
        "decision": samples.decision(),
        "plan": samples.plan(),
        "adapter": samples.adapter(folder),
        "proof": samples.proof(),
        "evaluation": evaluation,
        "promotion": samples.promotion(alias="champion"),
    }
    expected, took = (
        records.Cost(when, 2e13, 0.5, 1, 0.5, records.Energy(kwh, source, "2 CPU threads of 8 W"), None, "EUR", ())
        for when, kwh, source in (("planned", 0.02, "estimated"), ("measured", 0.031, "measured"))
    )
    return ReportInputs(BASE, found, dict.fromkeys(found, folder), "http://127.0.0.1:5000/#/runs/1", (expected, took))
