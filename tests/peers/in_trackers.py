"""In TRL's environment: `watch` in an SFTTrainer that reports to TensorBoard and to W&B offline; prints what each of the two holds.

python in_trackers.py MODEL FOLDER
"""

import json
import os
import sys
from pathlib import Path


def main(model: str, folder: Path) -> None:
    import peft
    import trl
    from transformers import AutoModelForCausalLM

    import lora_select.callbacks as callbacks
    from lora_select import models

    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "TENSORBOARD_LOGGING_DIR": str(folder / "board")}
    tokenizer = models.load_tokenizer(model)
    rows = [{"prompt": f"say {n}", "completion": " yes yes yes"} for n in range(24)]
    trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=trl.SFTConfig(
            output_dir=str(folder / "out"), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1,
            use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, report_to=["tensorboard", "wandb"],
        ),
        train_dataset=dataset_of(rows),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    seen = callbacks.watch(trainer, validation=rows[:4], every=1, reference_tokens=256)
    chosen = [{"prompt": f"tell {n}", "completion": " yes yes yes"} for n in range(8)]
    small = {"task_tokens": 400, "reference_tokens": 600, "judging_units": 4}
    kept = callbacks.retain(trainer, rows=rows, kept=chosen, out=folder / "kept", base=model, **small)
    trainer.train()
    import wandb

    wandb.finish()
    assert kept.made is not None
    told = {"seen": seen.history, "table": callbacks.table(kept.made)}
    print(json.dumps(told | {"tensorboard": of_board(folder / "board"), "wandb": of_wandb(folder)}))


def dataset_of(rows):
    import datasets

    return datasets.Dataset.from_list(rows)


def of_board(folder: Path) -> dict[str, list]:
    """Step and value of each scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.*")
    board = EventAccumulator(str(file)).Reload()
    return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def of_wandb(folder: Path) -> dict[str, list]:
    """Step and value of each metric, from the records of the offline run's file (LevelDB's log format, blocks of 32 KiB)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("run-*.wandb")
    found: dict[str, list] = {}
    for data in records(file.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            for name in values.keys() - {"train/global_step"}:
                found.setdefault(name, []).append((values.get("train/global_step"), values[name]))
    return found


def records(content: bytes) -> list[bytes]:
    """Whole records: a header of 7 bytes before the log, then chunks of checksum, length and kind (whole, first, middle, last)."""
    made, part, place = [], b"", 7
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            made.append(part)
            part = b""
    return made


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
