"""One rank of somebody's own loop around the adapter that a choice made; `test_own_loops.py` starts it with one and with two ranks."""

import os

import torch

STEPS, BATCH, LENGTH = 6, 8, 24


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
    if kind != "accelerate":
        dist.init_process_group("gloo")
    model, optimizer, backward = WRAPS[kind](model)
    if kind == "fsdp":
        whole = sum(parameter.numel() for parameter in model.parameters())
        assert sum(map(local, model.parameters())) < 0.7 * whole
    losses = []
    for step in range(STEPS):
        ids = torch.randint(4, 200, (BATCH, LENGTH), generator=torch.Generator().manual_seed(step % 2))
        mine = ids[index * BATCH // ranks : (index + 1) * BATCH // ranks]
        loss = model(input_ids=mine, labels=mine).loss
        backward(loss)
        optimizer.step()
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
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


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


WRAPS = {"fsdp": by_fsdp, "accelerate": by_accelerate}
