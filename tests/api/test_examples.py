"""The notebook's cells run as they stand, on a tiny model."""

import json
from pathlib import Path

from recipe_samples import chats, write_jsonl

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_notebook_runs(tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = write_jsonl(tmp_path / "rows.jsonl", chats(40))
    quick = {"max_length": 512, "microbatches": 4, "sketch_size": 8, "base_loss_rows": 2, "batch_size": 8}
    given = f"model, dataset, settings = {str(tiny_model_folder)!r}, {str(rows)!r}, {quick!r}"
    found = {}
    for cell in json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = given if "parameters" in cell["metadata"].get("tags", []) else "".join(cell["source"])
            exec(compile(source, "notebook", "exec"), found)
    assert found["adapted"].peft_config["default"].r == found["choice"].r
    assert found["spectra"].folder == found["choice"].folder
    assert "trainable params" in capsys.readouterr().out
