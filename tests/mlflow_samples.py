"""For the tests of tracking: records as a real run makes them (with files), and a real MLflow server on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_select import records
from lora_select.records import file_ref
from lora_select.tracking.store import SERVER_ENVIRONMENT

SHA = "0123456789abcdef" * 4


def spec(variant: str = "lora", r: int = 8, learning_rate: float = 3e-4) -> records.AdapterSpec:
    arguments = {"r": r, "lora_alpha": 2 * r, "use_rslora": variant == "rslora"}
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return records.AdapterSpec(
        variant,
        "all-linear",
        modules,
        r,
        2 * r,
        2.0,
        "default",
        learning_rate,
        "LoraConfig",
        arguments,
        {},
        305_000 * r,
    )


def write(folder: Path, name: str, text: str) -> records.FileRef:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return file_ref(path, folder)


def dataset(folder: Path, digest: str = SHA) -> records.Dataset:
    train, held_out, rejected = (
        write(folder, name, name) for name in ("train.parquet", "eval.parquet", "rejected.jsonl")
    )
    sources = (records.SourceFile("rows.jsonl", digest, 900, 880),)
    reasons = (records.RejectedRows("exact duplicate", 20, ("rows.jsonl:3",)),)
    return records.Dataset(
        "tweets",
        "sample:tweets",
        "alpaca",
        digest,
        800,
        80,
        train,
        held_out,
        rejected,
        sources,
        reasons,
        "split by hash",
    )


def profile(folder: Path) -> records.DatasetProfile:
    quantiles = records.Quantiles(5, 40, 80, 120, 150, 44.0)
    split = records.SplitProfile(800, 40_000, 30_000, 10_000, quantiles, quantiles, 0, 2, 7, 1)
    tokens = write(folder, "train_tokens.parquet", "t")
    return records.DatasetProfile(
        SHA, SHA, 512, split, split, 0, 2.5, 0.05, 80, 3.1, 36_000.0, ("2 rows truncated",), tokens, tokens
    )


def spectra(folder: Path) -> records.Spectra:
    layer = records.LayerSpectra(
        "layers.0.q", "q_proj", 64, 64, 900, 0.5, 0.1, 2.0, (1.0, 0.5), (0.1, 0.1), 2, 0.4,
        8.0, (2.0, 1.0), (0.1,), 1e-3, 3.0, 60.0, 50.0, (9.0,), 55.0, {"hadamard": 1.1}, {"hadamard": 0.2},
        {"lora@8": 0.4}, {"lora@8": 0.02}, {"lora@8": 1e-3},
    )  # fmt: skip
    tensors = write(folder, "spectra.safetensors", "x")
    return records.Spectra(
        SHA, SHA, 16, 4, 64, 0, 9000, 2000, 2.4, (layer,), {"lm_head": "tied"}, tensors, 12.0, 1.0, ()
    )


def decision(choice: str = "lora", r: int = 8) -> records.Decision:
    inputs = records.Constraints(None, False, None, True, 0, None, None, None, None, 100, None, {})
    evidence = (records.Evidence("tangent share", 0.41, 0.02, "", "analyze"),)
    variants = ("lora", "rslora", "dora", "pissa", "eva")
    candidates = tuple(
        records.CandidateScore(
            f"{v}@{r}",
            spec(v, r),
            evidence,
            0.5 - i / 10,
            0.02,
            () if v == choice else (f"{v} gains nothing measurable",),
        )
        for i, v in enumerate(variants)
    )
    reasons = ("the signal clears the noise in 30 of 30 layers",)
    return records.Decision(
        "tangent-share", "1", SHA, SHA, inputs, spec(choice, r), f"{choice}@{r}", False, reasons, candidates
    )


def plan() -> records.TrainingPlan:
    guess = records.Range(1.0, 2.0, 3.0)
    return records.TrainingPlan(
        "cpu",
        2,
        0,
        "float32",
        4,
        2,
        16,
        1.0,
        100,
        5,
        3e-4,
        "linear",
        0.0,
        1.0,
        25,
        2,
        False,
        0,
        1,
        guess,
        guess,
        0.5,
        ("fits",),
    )


LOOK_EVERY = 10
"""Steps from one look at the validation rows to the next."""


def steps(path: Path, numbers: range, *, start: float = 2.5, timestamp_ms: int = 1_700_000_000_000) -> None:
    """Write metrics as rank 0 does: one line per step, appended."""
    with path.open("a") as stream:
        for step in numbers:
            loss = start / (1 + step / 20)
            looked = None if step % LOOK_EVERY else 1.1 * loss
            at = timestamp_ms + 1000 * step
            line = records.StepMetrics(step, loss, 3e-4, 1.0, 500 * step, 290.0, 1.8, at, looked)
            stream.write(json.dumps(vars(line)) + "\n")


def adapter(folder: Path, variant: str = "lora", r: int = 8, count: int = 60) -> records.Adapter:
    header = json.dumps({"__metadata__": {"of": f"{variant} {r}"}})  # of a safetensors file without tensors
    files = (
        write(folder, "adapter/adapter_config.json", json.dumps({"peft_type": "LORA", "r": r, "variant": variant})),
        write(folder, "adapter/adapter_model.safetensors", chr(len(header)) + 7 * "\0" + header),
    )
    metrics = folder / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    steps(metrics, range(1, count + 1), start=2.4 + r / 100)
    digest = records.digest(records.Report(files[1]))
    return records.Adapter(
        spec(variant, r), "adapter", files, digest, write(folder, "reference_logits.safetensors", "p"), file_ref(metrics, folder),
        count, 0.61, 30_000, 8_000, 95.0, 1.9, 2, 0, (), "as trained",
    )  # fmt: skip


def proof() -> records.ReloadCheck:
    return records.ReloadCheck(SHA, 420, True, True, 2e-6, 1e-4, 3.2, True, ())


def pair(base: float, adapted: float, *, better: str = "lower") -> records.MetricComparison:
    change = adapted - base
    bounds = (change - 0.05, change + 0.05)
    return records.MetricComparison(base, adapted, change, bounds, 80, "nats", better, bounds[0] * bounds[1] > 0)


def evaluation(folder: Path, loss: float = 0.9, *, rival_loss: float | None = None) -> records.Evaluation:
    metrics = {"loss": pair(2.5, loss), "exact_match": pair(0.1, 0.62, better="higher")}
    against = {} if rival_loss is None else {"plain_lora": {"loss": pair(rival_loss, loss)}}
    samples = (records.Sample("Tweet: hi @anna", '{"who": "anna"}', "Hello!", '{"who": "anna"}'),)
    rows = write(folder, "rows.jsonl", "{}")
    return records.Evaluation(SHA, SHA, metrics, against, pair(3.0, 3.02), samples, rows, ("80 rows",))


def stored() -> tuple[records.StoredGain, ...]:
    """Two forms of fewer bits: one of which a share is told, one of which none is."""
    metrics = {"loss": pair(0.9, 0.94), "exact_match": pair(0.62, 0.6, better="higher")}
    return (
        records.StoredGain("nf4", 2.75, metrics, 0.962, (0.94, 0.98)),
        records.StoredGain("q8_0", 2.51, metrics | {"loss": pair(0.9, 0.901)}, None, None),
    )


def promotion(version: str = "1", alias: str = "challenger") -> records.Promotion:
    return records.Promotion("tweets", version, alias, None, ("the interval excludes zero",))


def report(folder: Path) -> records.Report:
    return records.Report(write(folder, "report.html", "<h1>done</h1>"), (write(folder, "loss.svg", "<svg/>"),))


def change() -> records.VersionChange:
    return records.VersionChange("grown", "grown by 7 rows", 7, 0, 800, None, (), ())


def gate() -> records.Gate:
    finding = records.Finding("near-duplicates", "warn", 3, 100, 0.01, 0.08, "3 of 100", ("rows.jsonl:4: 7",), "show")
    return records.Gate("a" * 64, 100, 100, "findings", {"near-duplicates": "warn"}, (finding,), {}, {}, {})


def retention() -> records.Retention:
    def pair(base: float, adapted: float) -> records.MetricComparison:
        change = adapted - base
        return records.MetricComparison(
            base, adapted, change, (change - 0.01, change + 0.01), 16, "nats/token", "lower", True
        )

    evidence = records.RetentionEvidence(
        records.Tolerance(0.01, None), 0.5, 24, 26.0, (), (), {}, {}, {}
    )  # fmt: skip
    judged = records.ReferenceJudgement(
        "prose", "embedded", True, "b" * 64, 3.0, {"raw": pair(3.0, 3.3), "filter": pair(3.0, 3.02)}, {"raw": 0.2}
    )
    return records.Retention(
        "c" * 64, "d" * 64, "adapter", (), "e" * 64, evidence,
        records.RetentionDecision("filter", 0.1, ("it keeps more",)), {"filter": pair(0.5, 0.503)}, (judged,), (), {},
        "lora", "lora", 16, 0.0, 1e-4, 0.0, 8192, 8192, None, 90.0, 80.0, (),
    )  # fmt: skip


def few_shot(folder: Path, loss=None, match=None, *, enough: bool = False) -> records.FewShot:
    def pair(base, adapted, unit, better):
        return records.MetricComparison(base, adapted, adapted - base, (adapted - base,) * 2, 32, unit, better, True)

    metrics = {
        "exact_match": match or pair(0.0, 0.25, "of rows", "higher"),
        "loss": loss or pair(3.0068, 1.0777, "nats/token", "lower"),
    }
    files = {name: write(folder, f"few-shot/{name}.json", name) for name in ("base", "few_shot")}
    return records.FewShot(SHA, SHA, 4, metrics, enough, ("4 training rows stand in the prompt",), files)


def references() -> records.ReferenceText:
    return records.ReferenceText((records.ReferenceSource("prose", "prose", 4096, 8, "c" * 64, ()),), ("self",))


def tasks() -> records.TasksOverTime:
    first = records.TaskOverTime("tweets", "c" * 64, 64, (3.0, 1.0, 1.5), 2.0)
    return records.TasksOverTime(
        ("tweets", "notes"), (first, records.TaskOverTime("notes", "d" * 64, 64, (None, 2.5, 0.5), 0.5))
    )


def every_record(folder: Path) -> list:
    """One of each, files in `folder`."""
    return [
        dataset(folder), gate(), change(), profile(folder), few_shot(folder), spectra(folder), decision(), plan(), adapter(folder), proof(),
        references(), retention(), tasks(), evaluation(folder), promotion(), report(folder),
    ]  # fmt: skip


# --- a real server ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(database: Path, port: int) -> Iterator[str]:
    """`mlflow server` on loopback until the block ends; then it is killed, as a crash would."""
    artifacts = database.parent / "served-artifacts"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(artifacts), "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, **SERVER_ENVIRONMENT, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (database.parent / "server.log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def _wait(address: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert process.poll() is None, "the MLflow server stopped"
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError("the MLflow server did not answer in 600 s")
