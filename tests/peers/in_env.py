"""Run inside a tool's own environment: `python in_env.py TOOL FOLDER`, in the emitted folder; prints JSON.

The rows as the tool's own code tokenises and masks them, and what its own parser made of the file's numbers.
"""

import json
import sys


def llamafactory():
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import read_args
    from llamafactory.hparams.parser import get_train_args
    from llamafactory.model import load_tokenizer

    sys.argv = ["train", "train.yaml"]
    model_args, data_args, training, tuning, _ = get_train_args(read_args())
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training, stage="sft", **module)
    found = {"r": tuning.lora_rank, "alpha": tuning.lora_alpha, "start": model_args.adapter_name_or_path}
    found |= {
        "patience": tuning.early_stopping_steps,
        "dora": tuning.use_dora,
        "ratio": tuning.loraplus_lr_ratio,
        "targets": sorted(tuning.lora_target),
    }
    return (
        list(data["train_dataset"]),
        list(*data["eval_dataset"].values() if isinstance(data["eval_dataset"], dict) else [data["eval_dataset"]]),
        found | trainer(training),
    )


def axolotl():
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    cfg = load_cfg("train.yaml")
    data = load_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    found = {"r": cfg.lora_r, "alpha": cfg.lora_alpha, "start": cfg.lora_model_dir, "dora": bool(cfg.peft_use_dora)}
    found |= {
        "patience": cfg.early_stopping_patience,
        "looks": looks(cfg),
        "ratio": cfg.loraplus_lr_ratio,
        "targets": sorted(cfg.lora_target_modules),
    }
    found |= {"rate": cfg.learning_rate, "batch": cfg.micro_batch_size * cfg.gradient_accumulation_steps}
    found |= {
        "warmup": cfg.warmup_steps,
        "decay": cfg.weight_decay,
        "schedule": str(getattr(cfg.lr_scheduler, "value", cfg.lr_scheduler)),
    }
    return list(data.train_dataset), list(data.eval_dataset), found


def ms_swift():
    from swift.cli.main import parse_yaml_args
    from swift.pipelines.train.sft import SwiftSft

    argv = ["train.yaml"]
    parse_yaml_args(argv)
    job = SwiftSft(argv)
    train, held_out = job._prepare_dataset()
    args = job.args
    found = {"r": args.lora_rank, "alpha": args.lora_alpha, "start": args.adapters, "dora": args.use_dora}
    found |= {
        "patience": args.training_args.early_stop_interval,
        "ratio": args.lorap_lr_ratio,
        "targets": sorted(args.target_modules),
    }
    return list(train), list(held_out), found | trainer(args.training_args)


def trl():
    import runpy

    from transformers import AutoTokenizer

    made = runpy.run_path("train.py", run_name="script")
    tokenizer = AutoTokenizer.from_pretrained(made["MODEL"])
    args = made["SFTConfig"](**made["ARGUMENTS"])
    config = made["adapted_model"]().peft_config["default"]
    found = {"r": config.r, "alpha": config.lora_alpha, "start": None, "dora": config.use_dora, "ratio": None}
    found |= {"targets": sorted(config.target_modules)} | trainer(args)
    return list(made["rows"]("train.jsonl", tokenizer)), list(made["rows"]("eval.jsonl", tokenizer)), found


def trainer(args):
    """Of any `TrainingArguments`."""
    return {
        "looks": looks(args),
        "rate": args.learning_rate,
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "warmup": args.warmup_steps,
        "decay": args.weight_decay,
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
    }


def looks(args):
    """Steps between looks and between checkpoints, and whether and by what the best one is taken up."""
    return [args.eval_steps, args.save_steps, args.load_best_model_at_end, args.metric_for_best_model]


def plain(rows):
    return [
        {"input_ids": [int(i) for i in row["input_ids"]], "labels": [int(i) for i in row["labels"]]} for row in rows
    ]


def main():
    tool = sys.argv[1]
    train, held_out, found = {"llamafactory": llamafactory, "axolotl": axolotl, "ms-swift": ms_swift, "trl": trl}[
        tool
    ]()
    with open("seen.json", "w") as stream:
        json.dump({"train": plain(train), "eval": plain(held_out), "found": found}, stream)


if __name__ == "__main__":
    main()
