"""`lora-select analyze` on a tiny model: the record, the table, the figures, and what it refuses."""

import json

import pytest

from lora_select.cli.main import main
from lora_select.records import AdapterCosts, Spectra, read
from lora_select.tracking import entries


@pytest.fixture
def data(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} " * (2 + n % 4)}]}
        for n in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def analyze(model, data, out, *more):
    return main(
        [
            "analyze",
            "--model",
            str(model),
            "--data",
            str(data),
            "--out",
            str(out),
            "--runs-dir",
            str(out.parent / "runs"),
            "--microbatches",
            "8",
            "--base-loss-rows",
            "2",
            *more,
        ]
    )


def test_it_prints_a_line_a_layer_and_writes_record_and_figures(tiny_model_folder, data, tmp_path, capsys):
    assert analyze(tiny_model_folder, data, tmp_path / "out", "--sketch-size", "16") == 0
    printed = capsys.readouterr().out
    spectra = read(Spectra, tmp_path / "out" / "spectra.json")
    assert len(spectra.layers) == 14
    for layer in spectra.layers:
        assert any(line.startswith(layer.name) for line in printed.splitlines())
    shown = [line.split()[0] for line in printed.splitlines() if line.startswith("model.layers.")]
    energies = {layer.name: layer.signal_energy for layer in spectra.layers}
    for block in ("model.layers.0.", "model.layers.1."):
        within = [energies[name] for name in shown if name.startswith(block)]
        assert within == sorted(within, reverse=True)
    assert "14 layers over 8 microbatches" in printed
    for name in ("signal-ranks.png", "spectrum.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_too_few_rows_and_a_label_beyond_the_length_are_refused(tiny_model_folder, data, tmp_path, capsys):
    assert analyze(tiny_model_folder, data, tmp_path / "out", "--microbatch-size", "30") == 2
    assert "needs at least 120 training rows" in capsys.readouterr().err
    assert analyze(tiny_model_folder, data, tmp_path / "out", "--max-length", "8") == 2
    assert "dataset.max_length" in capsys.readouterr().err


def test_a_small_sketch_is_refused(tiny_model_folder, data, tmp_path, capsys):
    assert analyze(tiny_model_folder, data, tmp_path / "out", "--sketch-size", "2") == 2
    assert "`analysis.sketch_size`: input should be greater than or equal to 4, got 2" in capsys.readouterr().err


def test_curvature_and_quantisation_errors_are_measured_on_request(tiny_model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert analyze(tiny_model_folder, data, out, "--sketch-size", "16", "--curvature", "--quantize", "nf4") == 0
    printed = capsys.readouterr().out
    costs, spectra = read(AdapterCosts, out / "costs.json"), read(Spectra, out / "spectra.json")
    assert "nf4 error" in printed
    assert costs.curvature is not None
    assert f"curvature of lora-all-linear-r16 at its start: {costs.curvature.value:.3g}" in printed
    assert costs.curvature.value > 100 * costs.curvature.error
    assert set(costs.quantisation) == {layer.name for layer in spectra.layers}
    for name, error in costs.quantisation.items():
        row = next(line for line in printed.splitlines() if line.startswith(name)).split()
        assert row[-4:] == [f"{100 * error.relative_error:.2g}", "%", f"{100 * error.shares[16]:.0f}", "%"]
        assert 0.02 < error.relative_error < 0.2
        assert error.shares[8] < error.shares[16] < error.shares[32] <= 1
    [made] = (tmp_path / "runs" / "stages" / "costs").glob("*/record.json")
    stamp = made.stat().st_mtime_ns
    assert analyze(tiny_model_folder, data, out, "--sketch-size", "16", "--curvature", "--quantize", "nf4") == 0
    assert made.stat().st_mtime_ns == stamp
    assert read(AdapterCosts, next((tmp_path / "runs").glob("*/costs.json"))) == costs
    assert entries.of(costs).metrics.keys() == {"costs/curvature", "costs/quantisation_median"}


def test_nothing_more_is_measured_without_the_flags(tiny_model_folder, data, tmp_path, capsys):
    assert analyze(tiny_model_folder, data, tmp_path / "out", "--sketch-size", "16") == 0
    assert not (tmp_path / "out" / "costs.json").exists()
    assert "curvature" not in capsys.readouterr().out
