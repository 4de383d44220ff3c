"""Two gloo ranks that share the microbatches give the result of one."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys, tempfile
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import torch, torch.distributed as dist
torch.set_num_threads(1)
rank, address = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
from transformers import AutoModelForCausalLM
import test_analyze
from lora_select.records import to_json
model = AutoModelForCausalLM.from_pretrained(sys.argv[5])
wide = test_analyze.wide_llama()
with tempfile.TemporaryDirectory() as folder:
    spectra = test_analyze.run(model, Path(folder), group=dist.group.WORLD)
    Path(sys.argv[6], f"rank-{rank}.json").write_text(to_json(spectra))
    spectra = test_analyze.run(wide, Path(folder), group=dist.group.WORLD)
    Path(sys.argv[6], f"wide-{rank}.json").write_text(to_json(spectra))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_ranks_give_the_one_rank_result(tiny_model_folder, tmp_path):
    from test_analyze import run, wide_llama
    from transformers import AutoModelForCausalLM

    from lora_select.records import Spectra, read

    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(tiny_model_folder), str(tmp_path)]
    address = f"file://{tmp_path / 'meeting'}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), address, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    texts = [process.communicate(timeout=200) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], texts
    found = [read(Spectra, tmp_path / f"rank-{rank}.json") for rank in (0, 1)]
    alone = run(AutoModelForCausalLM.from_pretrained(tiny_model_folder), tmp_path)
    assert [layer.signal_energy for layer in found[0].layers] == [layer.signal_energy for layer in found[1].layers]
    assert found[0].label_tokens == alone.label_tokens
    assert found[0].mean_loss == pytest.approx(alone.mean_loss, rel=1e-6)
    for shared, one in zip(found[0].layers, alone.layers, strict=True):
        assert shared.tokens == one.tokens
        assert shared.signal_energy == pytest.approx(one.signal_energy, rel=1e-3, abs=1e-5 * one.noise_energy)
        assert shared.noise_energy == pytest.approx(one.noise_energy, rel=1e-3)
        assert shared.heldout_values == pytest.approx(one.heldout_values, rel=1e-2, abs=1e-4)
        assert shared.activation_energy == pytest.approx(one.activation_energy, rel=1e-5)
    found = [read(Spectra, tmp_path / f"wide-{rank}.json") for rank in (0, 1)]
    for shared, same, one in zip(*(f.layers for f in found), run(wide_llama(), tmp_path).layers, strict=True):
        assert shared.activation_values == same.activation_values == pytest.approx(one.activation_values, rel=1e-3)
        assert shared.activation_energy == pytest.approx(one.activation_energy, rel=1e-5)
