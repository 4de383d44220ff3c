"""TRL's SFTTrainer. Its loss forms no logits where labels are masked (its default since 1.15 or so)."""

import task as told


def main():
    task = told.read()
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock = told.Clock(task)
    options = told.arguments(task) | {"train_sampling_strategy": "sequential"}
    trainer = SFTTrainer(
        model=told.model(task),
        args=SFTConfig(**options, gradient_checkpointing=False, max_length=None),
        train_dataset=told.dataset(task),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
        peft_config=told.lora(task),
        callbacks=[told.callback(clock)],
    )
    trainer.train()
    clock.answer()


if __name__ == "__main__":
    main()
