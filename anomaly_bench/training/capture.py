"""A whole training step as one graph: recorded from the code that also runs eagerly, then replayed or compiled.

A step does forward passes, backward passes and updates in an order of its own. Recording runs it once and writes
down every tensor operation, weights and optimiser state among the inputs; what is written down is then replayed
(`graph`), or compiled as one (`inductor`). The step's Python runs no more, so a step that does not do the same
operations every time (it counts, or looks at values) is left to run eagerly, and the record says so.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly_bench.detector import Batch, Detector, Stage
from anomaly_bench.training.gemm import STAND_INS

log = logging.getLogger("anomaly_bench")

MODES = ("auto", "off", "graph", "inductor")

ROWS_FROM = 50_000
"""Rows of a stage, each counted once an epoch, from which it is worth counting operations at all."""

GRAPH_FROM = 2e12
"""Operations of a stage from which recording pays: some seconds of one core."""

INDUCTOR_FROM = 1e14
"""Operations of a stage from which half a minute of compiling pays."""

INDUCTOR_FROM_CALLS = 3e6
"""Calls of torch's kernels in a stage from which it pays too: compiled, each takes microseconds less."""

INDUCTOR_FROM_STEPS = 10_000
"""Steps that this needs as well: to compile a call takes as long as is gained by some thousand of them."""

Step = Callable[[Batch], dict[str, Tensor]]
Run = Callable[[Tensor, Tensor], list[Tensor]]


@dataclass(frozen=True)
class Prepared:
    """A step ready to run, and in words how it runs: `eager`, `graph` or `inductor`, and why if not as wanted."""

    step: Step
    how: str


def prepared(
    mode: str,
    detector: Detector,
    stage: Stage,
    batch: Batch,
    n_steps: int,
    context: Callable[[], AbstractContextManager],
    gemm: bool = True,
) -> Prepared:
    """The step of `stage` as `mode` has it; detector, optimisers and random state are as they were afterwards.

    Args:
        mode: one of MODES. `auto` decides by the operations and calls of all steps together, never by time, so
            that the same settings give the same bits; it never records on an accelerator, nor small stages.
        batch: one like those to come.
        n_steps: of the whole stage.
        context: that the eager step runs in: autocast, or nothing.
        gemm: on a CPU, compute convolutions as `gemm.py` does.
    """

    def eager(batch: Batch) -> dict[str, Tensor]:
        with context():
            return stage.step(batch)

    on_cpu = batch.x.device.type == "cpu"
    if mode == "off" or (mode == "auto" and not (on_cpu and n_steps * len(batch.x) >= ROWS_FROM)):
        return Prepared(eager, "eager")
    try:
        work, changed = rehearsed(eager, detector, stage, batch)
        if changed:
            raise NotRepeatable(f"it changes {', '.join(changed)}")
        chosen = worthwhile(work.total, work.calls, n_steps) if mode == "auto" else mode
        if chosen == "off":
            return Prepared(eager, "eager")
        with undone(detector, stage):
            run, names = as_one(eager, batch, chosen, STAND_INS if gemm and on_cpu else {})
    except Exception as error:  # what cannot be recorded, for whatever reason, can still be run
        reason = str(error).strip().partition("\n")[0][:200]
        if mode != "auto":
            log.warning("stage %s runs as it is written: %s", stage.name, reason)
        return Prepared(eager, f"eager: {reason}")
    return Prepared(lambda batch: dict(zip(names, run(batch.x, batch.index), strict=True)), chosen)


class NotRepeatable(Exception):
    """A step that does not do the same every time."""


def worthwhile(operations: int, calls: int, n_steps: int) -> str:
    """The mode that pays on a CPU for a stage of `n_steps`, each of so many operations and calls of kernels."""
    if operations * n_steps > INDUCTOR_FROM:
        return "inductor"
    if n_steps >= INDUCTOR_FROM_STEPS and calls * n_steps > INDUCTOR_FROM_CALLS:
        return "inductor"
    return "graph" if operations * n_steps > GRAPH_FROM else "off"


def as_one(
    eager: Step, batch: Batch, mode: str, stand_ins: dict[Any, Callable[..., Any]]
) -> tuple[Run, list[str]]:
    """A step recorded, and replayed or compiled, as a function of `(x, index)`; and the names of its losses."""
    graph, names = recorded(eager, batch, stand_ins)
    if mode == "inductor":
        return inference(compiled(graph, batch)), names
    run = inference(graph)
    return cuda_graph(run, batch) if batch.x.device.type == "cuda" else run, names


def rehearsed(eager: Step, detector: Detector, stage: Stage, batch: Batch) -> tuple["Operations", list[str]]:
    """What one step computes, and the plain numbers that it changes; leaves everything as it was."""
    before = plain_numbers(detector, stage)
    with undone(detector, stage), Operations() as counter:
        eager(batch)
    after = plain_numbers(detector, stage)
    changed = [name for name, (value, _) in after.items() if name not in before or before[name][0] != value]
    for _, put_back in before.values():
        put_back()
    return counter, changed


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and products inside it, and all calls of kernels.

    torch's own FlopCounterMode also hooks every module, which gradients of gradients do not allow.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imports triton, 80 MiB that few runs need

        super().__init__()
        self.registry = flop_registry
        self.total = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        out = func(*args, **(kwargs or {}))
        if (count := self.registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def plain_numbers(detector: Detector, stage: Stage) -> dict[str, tuple[Any, Callable[[], None]]]:
    """What a step can count with, by name: its value, and what puts that back.

    These are numbers, texts and truth values of the detector, of the step's closure and of the optimisers'
    settings. What a step keeps in a list of its own is not seen.
    """
    names = getattr(getattr(stage.step, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(stage.step, "__closure__", None) or (), strict=True))
    places: dict[str, dict[str, Any]] = {"": vars(detector)}
    places |= {
        f" of group {number} of optimiser {which}": group
        for which, optimizer in enumerate(stage.optimizers)
        for number, group in enumerate(optimizer.param_groups)
    }
    held = {
        f"{name}{place}": (value, partial(values.__setitem__, name, value))
        for place, values in places.items()
        for name, value in values.items()
        if name != "training"
    } | {
        f"{name} of its closure": (
            cell.cell_contents,
            partial(setattr, cell, "cell_contents", cell.cell_contents),
        )
        for name, cell in cells.items()
    }
    plain = (bool, int, float, str, tuple, type(None))
    return {name: pair for name, pair in held.items() if isinstance(pair[0], plain)}


@contextmanager
def undone(detector: Detector, stage: Stage) -> Iterator[None]:
    """Undo afterwards what happens inside to weights, buffers, optimisers, random state and modes.

    Optimiser state that is made inside stays, filled with zeros as every optimiser of torch's family of Adam,
    RMSprop and SGD begins, so that what was recorded goes on writing to the very tensors that are kept.
    """
    tensors = [*detector.parameters(), *detector.buffers(), *optimizer_state(stage.optimizers)]
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    modes = [(module, module.training) for module in detector.modules()]
    known = {id(tensor) for tensor in tensors}
    accelerators = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with torch.random.fork_rng(accelerators):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
            for tensor in optimizer_state(stage.optimizers):
                if id(tensor) not in known:
                    tensor.zero_()
        for parameter in detector.parameters():
            parameter.grad = None
        for module, mode in modes:
            module.training = mode


def optimizer_state(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Every tensor that optimisers keep."""
    return [
        value
        for optimizer in optimizers
        for entries in optimizer.state.values()
        for value in entries.values()
        if isinstance(value, Tensor)
    ]


def recorded(
    eager: Step, batch: Batch, stand_ins: dict[Any, Callable[..., Any]]
) -> tuple[GraphModule, list[str]]:
    """The operations of one step as a function of `(x, index)`, which gives the losses; and their names."""
    names: list[str] = []

    def losses(x: Tensor, index: Tensor) -> list[Tensor]:
        told = eager(Batch(x, index))
        names[:] = told
        return list(told.values())

    graph = make_fx(losses, decomposition_table=stand_ins)(batch.x, batch.index)
    for node in reversed(list(graph.graph.nodes)):
        if "profiler" in str(node.target):
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, names


def inference(function: Callable[..., Any]) -> Run:
    """`function` without gradients: those of a recorded step are in it already."""

    def run(x: Tensor, index: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return function(x, index)

    return run


COMPILED: dict[str, Callable[..., list[Tensor]]] = {}
"""Compiled steps by their text, so that the runs of a sweep share one: weights are inputs."""


def compiled(graph: GraphModule, batch: Batch) -> Run:
    """A recorded step compiled by inductor as one graph, and run once, while it can still run otherwise.

    It goes to inductor as it is: `torch.compile` would trace it once more, and each call of what that makes takes
    longer, which small steps feel. Of inputs that are fake, in a shape environment as `torch.compile` has it,
    inductor finds on the disk what it compiled before.
    """
    from torch._inductor import compile as compile_graph
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    held = lift(graph)
    text = repr((graph.code, [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in (*held, *batch)]))
    if text not in COMPILED:
        with torch.no_grad(), quiet():
            table = {torch.ops.aten._fused_adam_.default: fused_adam}
            graph = make_fx(graph, decomposition_table=table)(*held, *batch)
            fake = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
            inputs: list[Any] = [fake.from_tensor(tensor) for tensor in (*held, *batch)]
            function: Any = compile_graph(graph, inputs, options={"fallback_random": True})
            COMPILED[text] = function
    function = COMPILED[text]
    with torch.no_grad(), quiet():
        function(*held, *batch)
    return lambda x, index: function(*held, x, index)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's compiler says of itself: that it calls what torch gives up, that no CUDA is there."""
    chatty = logging.getLogger("torch.utils.cpp_extension")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            yield
    finally:
        chatty.setLevel(level)


def lift(graph: GraphModule) -> list[Tensor]:
    """Make inputs of all tensors that a graph holds, before its own; gives them in order."""
    held: dict[str, Tensor] = {}
    first = next(iter(graph.graph.nodes))
    inputs: dict[str, Any] = {}
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in held:
            held[node.target] = getattr(graph, node.target)
            with graph.graph.inserting_before(first):
                inputs[node.target] = graph.graph.placeholder(node.target)
        node.replace_all_uses_with(inputs[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    return list(held.values())


def fused_adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    counts: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> Any:
    """One update of Adam as single operations, which inductor fuses again: it cannot see into the fused one."""
    if amsgrad or maximize or grad_scale is not None or found_inf is not None:
        return NotImplemented
    for p, gradient, mean, square, count in zip(parameters, gradients, means, squares, counts, strict=True):
        if weight_decay:
            gradient = gradient.add(p, alpha=weight_decay)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt() / (1 - beta2**count).sqrt() + eps
        p.sub_(mean / root * (lr / (1 - beta1**count)))
    return None


def cuda_graph(run: Run, batch: Batch) -> Run:
    """A recorded step as one CUDA graph; its inputs are copied into place, its losses out of it."""
    held = Batch(batch.x.clone(), batch.index.clone())
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # libraries choose their kernels and take their memory outside the graph
            run(*held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = run(*held)

    def replay(x: Tensor, index: Tensor) -> list[Tensor]:
        held.x.copy_(x)
        held.index.copy_(index)
        graph.replay()
        return [loss.clone() for loss in losses]

    return replay
