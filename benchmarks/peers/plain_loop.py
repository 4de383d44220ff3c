"""Our own model, batches and loss in one process without DeepSpeed's engine: what the engine costs."""

import task as told


def main():
    task = told.read()
    from pathlib import Path

    import torch

    from lora_select.data.labels.tokens import read_rows
    from lora_select.training import job
    from lora_select.training.worker import batches, model, optimizer, rehearsal
    from lora_select.training.worker.loss import training_loss

    job_file = Path(task["job"])
    made = job.read_job(job_file)
    rows = read_rows(Path(made.train_tokens))
    network = model.build(made, "cpu")
    rehearsal.make_ready(network, rows, made.plan, 0, "cpu")
    adam = optimizer.make_optimizer(network, made.spec, made.plan)
    clock = told.Clock(task)
    trained = [p for p in network.parameters() if p.requires_grad]
    for step in range(task["steps"]):
        numbers = batches.rows_of_step(len(rows), made.plan.epochs, task["batch"], made.plan.seed, step)
        chosen = [rows[number] for number in numbers]
        count, total = sum(sum(row.label_mask) for row in chosen), 0.0
        for part in batches.dealt(chosen, made.plan)[0]:
            loss = training_loss(network, rehearsal.batch_of(part, made.plan, 0, "cpu")) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, made.plan.max_grad_norm)
        adam.step()
        adam.zero_grad()
        clock.losses.append(total)
        clock.tick()
    clock.answer()


if __name__ == "__main__":
    main()
