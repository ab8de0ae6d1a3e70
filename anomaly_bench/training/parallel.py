"""One run on several processes, started by torchrun: each computes its part of every batch.

    torchrun --nproc-per-node=2 --module anomaly_bench.cli model=ganomaly data=mnist abnormal_class=2

Gradients are averaged before each update of an optimiser, batch norm takes the statistics of the whole batch, and all
processes start each stage from the weights of the first; so the updates of an epoch are, but for rounding, those of one
process with the same batches, wherever every loss is a mean over the rows of its batch. Methods for which that holds
say so (`Detector.splits`), others are refused. The first process alone scores and writes; the others only learn.
The code of a method between its stages runs in each process, on all rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from anomaly_bench.detector import Batch, Detector, Stage
from anomaly_bench.errors import SettingError

PATIENCE = timedelta(days=1)
"""How long a process waits for the first one, which evaluates between epochs."""


def processes() -> int:
    """How many processes this run has; 1 unless torchrun has started it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def own_device(device: torch.device) -> torch.device:
    """The accelerator of this process, where each has one of its own."""
    if processes() == 1 or device.type != "cuda":
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join(device: torch.device) -> None:
    """Meet the other processes."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


def leave() -> None:
    """Part from them; nothing more is asked of the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def tell(go: bool, device: torch.device) -> bool:
    """What the first process says, known to all."""
    if processes() == 1:
        return go
    join(device)
    said = torch.tensor(int(go), device=device)
    dist.broadcast(said, 0)
    return bool(said)


def part_of(batch: Batch) -> Batch:
    """This process' part of a batch."""
    if processes() == 1:
        return batch
    size = len(batch.index) // processes()
    own = slice(rank() * size, (rank() + 1) * size)
    return Batch(batch.x[own], batch.index[own])


def begin(detector: Detector, stage: Stage, batch_size: int) -> None:
    """Make the steps of a stage those of all processes together."""
    if processes() == 1:
        return
    if not detector.splits:
        raise SettingError(
            f"torchrun: a step of {type(detector).__name__} is not known to be a mean over its rows, so its batches "
            "are not split among processes; run it as one"
        )
    if batch_size % processes():
        raise SettingError(
            f"trainer.batch_size={batch_size}: allowed for {processes()} processes is a multiple of that"
        )
    for tensor in (*detector.parameters(), *detector.buffers()):
        first = tensor.detach().contiguous()
        dist.broadcast(first, 0)
        tensor.data.copy_(first)
    for optimizer in stage.optimizers:
        optimizer.register_step_pre_hook(average_gradients)


def average_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Replace gradients by their mean over the processes, in one message."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= processes()
    for gradient, mean in zip(gradients, message.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm by the statistics of all processes' rows. torch's own is for GPUs, and derived once only."""
    if not norm.training:
        return batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    over, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    mean = MeanOverProcesses.apply(x.float().mean(over))
    centred = x.float() - mean.view(shape)
    variance = MeanOverProcesses.apply(centred.square().mean(over))
    if (
        norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_batches_tracked is not None
    ):
        norm.num_batches_tracked += 1
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = processes() * x.numel() / x.shape[1]
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(variance.detach() * count / (count - 1), share)
    out = centred * (variance.view(shape) + norm.eps).rsqrt()
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out.to(x.dtype)


class MeanOverProcesses(torch.autograd.Function):
    """The mean of a tensor over the processes; its gradient is the mean of theirs, and can be derived again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Of `x`, in each process."""
        mean = x.clone()
        dist.all_reduce(mean)
        return mean / processes()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Each process' mean has a part of every process' tensor."""
        return MeanOverProcesses.apply(gradient)


@contextmanager
def epoch(detector: Detector, device: torch.device) -> Iterator[None]:
    """Steps inside belong to all processes; each draws other random numbers, the first as if it were alone.

    Afterwards all have the random state of the first, for the method's code between stages, and batch norm is torch's.
    """
    if processes() == 1:
        yield
        return
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(normalised, norm)  # pyright: ignore[reportAttributeAccessIssue]
    if rank():
        torch.manual_seed(int(torch.randint(2**31, ())) + rank())
    yield
    for norm in norms:
        del norm.forward
    state = torch.get_rng_state().to(device)
    dist.broadcast(state, 0)
    torch.set_rng_state(state.cpu())
