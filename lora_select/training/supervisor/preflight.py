"""What is checked before ranks are started: a sentence now in place of a failure later."""

from lora_select.errors import InputError
from lora_select.training.job import TrainingJob
from lora_select.training.machine import GIB


def check(job: TrainingJob) -> None:
    """Refuse a start that cannot end well.

    Raises:
        InputError: the rate is zero, other nodes have no meeting point, or a GPU's memory is taken by others.
    """
    plan = job.plan
    if plan.learning_rate <= 0:
        raise InputError(
            f"the learning rate is {plan.learning_rate:g}: training would change nothing; set `selection.learning_rate` "
            "above 0, 3e-4 is a good start"
        )
    if plan.num_processes % plan.nodes:
        raise InputError(f"{plan.num_processes} ranks cannot be spread evenly over {plan.nodes} nodes; change either")
    if plan.nodes > 1 and job.rendezvous is None:
        raise InputError(
            f"`training.nodes` is {plan.nodes} but nothing says where they meet; set LORA_SELECT_RENDEZVOUS to host:port of "
            "this node, as the other nodes reach it"
        )
    if plan.device == "cuda":
        refuse_busy(free_gpu_gib(plan.num_processes // plan.nodes), plan.memory_gib.low)


def refuse_busy(free: list[tuple[float, list[int]]], needed: float) -> None:
    """Refuse GPUs on which others have left less than the plan's lowest estimate.

    Args:
        free: for each GPU, free GiB and the ids of the processes that hold memory on it.
        needed: GiB of one rank.

    Raises:
        InputError: names the GPU and who holds it.
    """
    for index, (gib, holders) in enumerate(free):
        if gib < needed:
            held = f" by process {', '.join(map(str, holders))}" if holders else ""
            raise InputError(
                f"GPU {index} has {gib:.1f} GiB free and a rank needs at least {needed:.1f}; the rest is held{held}: end it, "
                "choose other GPUs with CUDA_VISIBLE_DEVICES, or lower `training.micro_batch_size`"
            )


def free_gpu_gib(count: int) -> list[tuple[float, list[int]]]:
    """Free GiB and holders of the first `count` visible GPUs. Never run on a GPU yet."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    try:
        found = []
        for index in range(count):
            # By UUID: NVML counts all GPUs of the machine, torch those in CUDA_VISIBLE_DEVICES.
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            holders = [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
            found.append((int(pynvml.nvmlDeviceGetMemoryInfo(handle).free) / GIB, holders))
        return found
    finally:
        pynvml.nvmlShutdown()
