"""Which tool expresses which variant: the whole table, and the sentences of what is refused."""

import pytest
from recipe_samples import order, spec

from lora_select.errors import InputError
from lora_select.recipes import TOOLS, emit, refuse_named, refuse_rows
from lora_select.variants import VARIANTS

NO_FOLDER = {"milora", "lora_ga", "corda_ipm", "corda_kpm"}
STARTS = {"eva", "orthogonal", "lora_one", "loftq"}
EXPRESSED = {
    "peft": {variant.name for variant in VARIANTS} - NO_FOLDER,
    "trl": {variant.name for variant in VARIANTS} - NO_FOLDER - {"adalora"},
    "llamafactory": {"lora", "rslora", "dora", "loraplus"} | STARTS,
    "axolotl": {"lora", "rslora", "dora", "loraplus", "pissa", "olora"} | STARTS,
    "unsloth": {"lora", "rslora"},
    "ms-swift": {"lora", "rslora", "dora", "loraplus", "pissa", "olora"} | STARTS,
}


def refusal(variant: str, tool: str) -> str:
    try:
        refuse_named(variant, [tool], None)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tool", TOOLS)
def test_the_table_of_what_is_expressed(tool):
    refused = {variant.name: refusal(variant.name, tool) for variant in VARIANTS}
    for sentence in filter(None, refused.values()):
        assert f"`recipes.trainers` {tool}: " in sentence
        assert any(way in sentence for way in ("take trl", "selection.variant", "with lora-select"))
    found = {name for name, sentence in refused.items() if not sentence}
    assert found == EXPRESSED[tool]


def test_pissa_is_not_emitted_for_vllm_which_would_add_it_to_the_pristine_base(tiny_model_folder):
    made = spec("pissa", tiny_model_folder)
    assert not TOOLS["axolotl"].cannot(made, None)
    assert "vLLM adds B A to the pristine base" in TOOLS["axolotl"].cannot(made, "vllm")[0]


def test_a_tool_that_cuts_prompts_refuses_long_rows_and_names_the_length(tiny_model_folder, tmp_path):
    told = order(tmp_path / "rows", tiny_model_folder, max_length=20)
    with pytest.raises(InputError, match=rf"{told.rows.longest}"):
        emit(told, ["llamafactory"], tmp_path / "none", tmp_path)
    refuse_rows(told.rows.longest, told.rows.longest, ["llamafactory"])
    refuse_rows(told.rows.longest, 20, ["trl", "axolotl", "ms-swift", "peft"])
