"""Hugging Face Trainer with PEFT."""

import task as told


def main():
    task = told.read()
    from peft import get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    clock = told.Clock(task)
    options = told.arguments(task) | {"train_sampling_strategy": "sequential"}
    trainer = Trainer(
        model=get_peft_model(told.model(task), told.lora(task)),
        args=TrainingArguments(**options),
        train_dataset=told.dataset(task),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        callbacks=[told.callback(clock)],
    )
    trainer.train()
    clock.answer()


if __name__ == "__main__":
    main()
