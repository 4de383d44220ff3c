"""Few-shot in the line: measured before the choice, told in every place, taken by the evaluation, and a reason to stop where one asks."""

import contextlib
import io
import json

import pytest

import lora_select as ls
from lora_select import models, records
from lora_select.cli.main import main
from lora_select.data.labels import render
from lora_select.errors import InputError
from lora_select.records import FewShot

pytestmark = pytest.mark.timeout(900)
QUICK = {
    "microbatches": 4,
    "sketch_size": 8,
    "base_loss_rows": 4,
    "max_length": 128,
    "batch_size": 16,
    "eval_fraction": 0.4,
}
ALONE = {"num_processes": 1, "tracking_uri": None}
SMALL = [
    "evaluation.exact_match_rows=12",
    "evaluation.max_new_tokens=4",
    "evaluation.bootstrap_samples=200",
    "evaluation.reference_tokens=512",
    "retention.mode=off",
]


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_SELECT_CACHE", str(folder / "cache"))
        for name, answers in (("rows", [str(n % 7) for n in range(60)]), ("same", ["y"] * 60)):
            lines = [json.dumps(chat(f"say {n}", answer)) for n, answer in enumerate(answers)]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
        yield folder


@pytest.fixture(scope="module")
def knows(place, tiny_model_folder):
    """A model whose next token hangs on the last one alone: after a question it says `y` and ends."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    prompt, _ = render.prompt_and_answer(chat("say 1", "y") | {"tools": []}, tokenizer)
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
    (said,) = tokenizer("y", add_special_tokens=False)["input_ids"]
    model = LlamaForCausalLM.from_pretrained(tiny_model_folder, tie_word_embeddings=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        tokens = model.get_input_embeddings().weight
        head = torch.zeros_like(tokens)
        head[said], head[tokenizer.eos_token_id] = 1000 * tokens[asked], 1000 * tokens[said]
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(place / "knows")
    tokenizer.save_pretrained(place / "knows")
    return place / "knows"


def command(*words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def recommend(place, model, rows, *more):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    places = ("--runs-dir", place / "runs", "--out", place / "out")
    return command("recommend", model, place / f"{rows}.jsonl", *places, *options, *SMALL, *more)


@pytest.mark.slow
def test_recommend_says_what_examples_reach_and_its_folder_explains_and_replays_it(place, tiny_model_folder):
    code, printed = recommend(place, tiny_model_folder, "rows")
    assert code == 0
    assert "`evaluation.few_shot=4` measures that first" in printed
    assert not (place / "out" / "few_shot.json").exists()
    code, printed = recommend(place, tiny_model_folder, "rows", "evaluation.few_shot=2")
    assert code == 0
    made = records.read(FewShot, place / "out" / "few_shot.json")
    loss = made.metrics["loss"]
    head = f"2 examples in the prompt: loss {loss.base:.3f} -> {loss.adapted:.3f}, exact match 0.0 % -> 0.0 % of 12"
    assert printed.count(head) == 2  # when the stage ends, and as the first line of the answer
    assert printed.index("LoRA on all linear layers") > printed.index(head)
    assert "`evaluation.few_shot=4` measures" not in printed
    assert command("explain", place / "out")[1].startswith(head)
    assert json.loads(command("explain", place / "out", "--json")[1])["few_shot"]["examples"] == 2
    assert command("replay", place / "out")[0] == 0
    records.write(place / "out" / "few_shot.json", made.__class__(**{**vars(made), "enough": True}))
    assert command("replay", place / "out")[0] == 1


@pytest.mark.slow
def test_the_adapter_is_held_against_what_was_measured_before_it(place, tiny_model_folder):
    told = [*SMALL, "evaluation.few_shot=2", "selection.when_hopeless=stop"]  # nothing is hopeless here
    done = ls.finetune(
        str(tiny_model_folder), place / "rows.jsonl", runs_dir=str(place / "runs"), overrides=told, **QUICK, **ALONE
    )
    before, pairs = done.few_shot, done.evaluation.against["few_shot"]
    assert before is not None
    for name in ("loss", "exact_match"):
        assert (done.evaluation.metrics[name].base, pairs[name].base) == (
            before.metrics[name].base,
            before.metrics[name].adapted,
        )
    assert any(note.startswith("2 training rows stand in the prompt") for note in done.evaluation.notes)
    assert len(list((place / "runs" / "stages" / "few-shot").glob("*/record.json"))) == 1
    assert done.replay() == []
    assert "examples in its prompt" in done.report.read_text().partition("Before and after")[0]


def test_where_every_answer_is_right_with_examples_it_is_said_first_and_stop_ends_before_the_pass(place, knows):
    code, printed = recommend(place, knows, "same", "evaluation.few_shot=2", "selection.when_hopeless=stop")
    assert code == 0  # nothing would be trained
    enough = (
        "FEW-SHOT ALREADY DOES IT: all 12 answers are exactly right (95 % interval of the share 73.5 % to 100.0 %)."
    )
    assert printed.count(enough) == 2
    passes = len(list((place / "runs" / "stages" / "analyze").glob("*")))
    told = [*SMALL, "evaluation.few_shot=2", "selection.when_hopeless=stop", "seed=1"]  # another pass
    with pytest.raises(InputError, match="FEW-SHOT ALREADY DOES IT.*`selection.when_hopeless: stop` ends here"):
        ls.finetune(str(knows), place / "same.jsonl", runs_dir=str(place / "runs"), overrides=told, **QUICK, **ALONE)
    assert len(list((place / "runs" / "stages" / "analyze").glob("*"))) == passes
