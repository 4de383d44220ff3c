"""One rank of somebody's own loop around the adapter that a choice made; `test_own_loops.py` starts it with one and with two ranks.

It takes the rows in the product's order, so that the product's own training can stand beside it.
"""

import os

import torch

from lora_select.data.labels.tokens import TokenRow
from lora_select.training.worker.batches import rows_of_step

STEPS, BATCH, LENGTH, RATE = 6, 8, 24, 1e-2


def rows():
    """Two batches' worth of ids, three times over; all tokens but the first are learnt."""
    ids = torch.randint(4, 200, (2 * BATCH, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    learnt = (False, *[True] * (LENGTH - 1))
    return [TokenRow(f"{n:03}", tuple(ids[n % (2 * BATCH)]), learnt) for n in range(STEPS * BATCH)]


def rank(index, ranks, port, kind, choice, model_folder, results):
    """Train with AdamW on this rank's share of each batch; `results` gets the mean loss of each batch."""
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    model = choice.apply(AutoModelForCausalLM.from_pretrained(model_folder)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if kind == "fsdp":
        dist.init_process_group("gloo")
    model, optimizer, backward = WRAPS[kind](model)
    if kind == "fsdp":
        whole = sum(parameter.numel() for parameter in model.parameters())
        assert sum(map(local, model.parameters())) < 0.7 * whole
    losses, every = [], rows()
    for step in range(STEPS):
        ids = torch.tensor([every[n].input_ids for n in rows_of_step(len(every), 1.0, BATCH, 0, step)])
        mine = ids[index * BATCH // ranks : (index + 1) * BATCH // ranks]
        loss = model(input_ids=mine, labels=mine).loss
        backward(loss)
        optimizer.step()
        if kind != "deepspeed":
            optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / ranks)
    if index == 0:
        results.put(losses)
    dist.destroy_process_group()


def local(parameter):
    """Values that this rank holds."""
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()


def adam(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)


def by_fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, adam(model), torch.Tensor.backward


def by_accelerate(model):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, adam(model))
    return model, optimizer, accelerator.backward


def by_deepspeed(model):
    """ZeRO 2: gradients and optimizer are split."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled at first use, for minutes
    deepspeed.init_distributed("gloo")
    ranks = torch.distributed.get_world_size()
    config = {"train_micro_batch_size_per_gpu": BATCH // ranks, "zero_optimization": {"stage": 2}}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam(model), config=config)
    return engine, engine, engine.backward


WRAPS = {"fsdp": by_fsdp, "accelerate": by_accelerate, "deepspeed": by_deepspeed}
