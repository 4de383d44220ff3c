"""What is left of an adapter's gain when it is merged into its base and the sum is stored in fewer bits.

    python -m benchmarks.quantised --adapter FOLDER --tokens eval_tokens.parquet [--base MODEL] [--rows 24] [--peers .peers] [--out FILE]

Arms: the base and the merged model, each in float32, nf4, int8 (bitsandbytes), q8_0 and q4_0 (rounded as `evaluation.quantized` does),
GGUF Q8_0 and Q4_K_M (llama.cpp, where its environment of `make engines` is); and the adapter beside its base. Each arm's losses are written at once, so that a killed run goes on where it was.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.base_gguf import write_base_gguf
from lora_select import models
from lora_select.data.labels.tokens import TokenRow, read_rows
from lora_select.evaluation.model_losses import label_counts, row_losses
from lora_select.models import rounding

FORMS = ("float32", "nf4", "int8", "q8_0", "q4_0", "Q8_0", "Q4_K_M")
GGUF = ("Q8_0", "Q4_K_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--base", default="sample:smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantised.json"))
    parser.add_argument("--work", type=Path, default=None, help="where the merged model is kept between runs")
    told = parser.parse_args()
    base = models.resolve(told.base).path
    rows = read_rows(told.tokens)[: told.rows]
    with tempfile.TemporaryDirectory() as temporary:
        work = told.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folders = {"base": Path(base), "merged": merged(base, told.adapter, work / "merged")}
        found = json.loads(told.out.read_text()) if told.out.is_file() else about(told, rows)
        arms = found["losses"]
        for name in ("base float32", "adapter", *(f"{who} {form}" for form in FORMS[1:] for who in ("merged", "base"))):
            if name in arms or (name.split()[-1] in GGUF and not (told.peers / "llamacpp/bin/python").is_file()):
                continue
            arms[name] = losses(name, folders, told, rows, work)
            told.out.write_text(json.dumps(found | {"left": left(arms)}, indent=1) + "\n")
            print(
                f"{name}: {math.fsum(arms[name]) / sum(label_counts(rows)):.4f} nats a token, {os.times()[0]:.0f} s",
                flush=True,
            )


def about(told: argparse.Namespace, rows: list[TokenRow]) -> dict:
    """What was measured, on what."""
    packages = {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    settings = {"base": told.base, "rows": len(rows), "labels": label_counts(rows), "threads": 1}
    return {
        **settings,
        "versions": packages,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "losses": {},
    }


def merged(base: str, adapter: Path, folder: Path) -> Path:
    """The merged model's folder."""
    if not (folder / "config.json").is_file():
        models.write_merged(models.with_adapter(models.load_model(base), adapter), base, folder)
    return folder


def losses(
    name: str, folders: dict[str, Path], told: argparse.Namespace, rows: list[TokenRow], work: Path
) -> list[float]:
    """Summed nats of each row."""
    if name == "adapter":
        model = models.with_adapter(models.load_model(str(folders["base"])), told.adapter)
        return row_losses(model, rows, 0, 4, "cpu")
    who, form = name.split()
    if form in GGUF:
        return by_llamacpp(folders[who], form, told.peers, rows, work)
    model = models.load_model(str(folders[who]), quantize=form if form in models.QUANTIZATIONS else None)
    if form in rounding.GGUF_FORMS:
        rounding.round_weights(model, form)
    return row_losses(model, rows, 0, 4, "cpu")


def by_llamacpp(folder: Path, form: str, peers: Path, rows: list[TokenRow], work: Path) -> list[float]:
    """In the engine's own environment."""
    file, given, out = work / f"{folder.name}.gguf", work / "rows.json", work / "losses.json"
    if not file.is_file():
        write_base_gguf(folder, file)
    given.write_text(json.dumps([[list(row.input_ids), list(row.label_mask)] for row in rows]))
    script = Path(__file__).with_name("peers") / "llamacpp_losses.py"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(peers / "llamacpp/bin/python"), str(script), str(file), str(given), str(out), form]
    subprocess.run(command, env=clean, check=True, capture_output=True)
    return json.loads(out.read_text())


def left(arms: dict[str, list[float]]) -> dict[str, float]:
    """Share of the adapter's gain over the float32 base that each merged arm keeps."""
    total = {name: math.fsum(values) for name, values in arms.items()}
    if not {"base float32", "adapter"} <= set(total):
        return {}
    gain = total["base float32"] - total["adapter"]
    return {name: (total["base float32"] - value) / gain for name, value in total.items() if name.startswith("merged")}


if __name__ == "__main__":
    main()
