"""The interface of a method: what it learns in which stages, how it scores, and what else it can show."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from typing import ClassVar, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.errors import SettingError
from anomaly_bench.rows import Batch, Rows

__all__ = [
    "Batch",
    "Detector",
    "Explanation",
    "RMSProp",
    "Rows",
    "Stage",
    "adam",
    "agreed",
    "descend",
    "detached",
    "map_of",
]


@dataclass(frozen=True)
class Stage:
    """One stage of learning by gradients, run by the trainer.

    Attributes:
        name: shown in the progress bar, in `losses.csv` and in messages.
        epochs: passes over the training rows, as the paper has them.
        step: one update of everything this stage trains, top to bottom as the paper's algorithm; gives the
            detached losses, each a scalar, the same names every time.
        optimizers: all that `step` uses, so that their state is kept with the weights.
        batch_size: the paper's.
        until: the paper's own stopping rule, if it has one: given an epoch's mean losses, is it over?
        scorable: False where the detector has no score yet, or none that means anything, until a later
            stage or fit; such epochs are not evaluated.
    """

    name: str
    epochs: int
    step: Callable[[Batch], dict[str, Tensor]]
    optimizers: Sequence[Optimizer]
    batch_size: int = 64
    until: Callable[[dict[str, float]], bool] | None = None
    scorable: bool = True


class Explanation(NamedTuple):
    """Everything a detector can say of a batch."""

    score: Tensor  # [N] higher is more anomalous, in the paper's units
    map: Tensor | None = None  # [N, H, W] anomaly map
    reconstruction: Tensor | None = None  # [N, *shape]
    features: Tensor | None = None  # [N, D]

    @classmethod
    def of_errors(cls, errors: Tensor, x: Tensor, reconstruction: Tensor, features: Tensor) -> Self:
        """By the errors `[N, ...]` of the entries of rows `x`: the score is their sum, of images there is a map."""
        return cls(errors.flatten(1).sum(1), map_of(errors, x), reconstruction, features)


def map_of(errors: Tensor, x: Tensor) -> Tensor | None:
    """The mean over channels `[N, H, W]` of the errors of images `x`, flattened or not; rows have no map."""
    return errors.view(x.shape).mean(1) if x.dim() == 4 else None


class Detector(nn.Module, ABC):
    """A method of one paper. Given a shape and plain arguments; sees neither labels nor configs."""

    transductive: ClassVar[bool] = False
    """True where the method can only score the rows it is fitted to: a run then trains it on the test rows."""

    splits: bool = False
    """True where each loss of a step is a mean over its rows: several processes may then take a part of them each."""

    foldable: ClassVar[bool] = True
    """False where scoring descends: batch norm that becomes part of the weights moves what it finds, and weights that
    it moves must be cast anew."""

    pretrained: ClassVar[bool] = False
    """True where it takes weights that were learned on other data: tables say so, and `forget` keeps them out."""

    needs_float64: ClassVar[bool] = False
    """True where it learns or scores in float64, which not every device has: the trainer refuses such a device."""

    scored_by: ClassVar[tuple[str, ...]] = ()
    """Arguments that only scoring looks at: of runs that differ in nothing else one trains."""

    @abstractmethod
    def stages(self, train: Rows) -> Iterator[Stage]:
        """Yield the stages of learning in the paper's order.

        What a stage needs between two others (a centre, a fitted covariance) is plain code between the
        yields, run in evaluation mode and without gradients; a method without gradients yields nothing.
        Three rules keep a run resumable:

        1. What outlives a yield lives on `self`, registered as a module, parameter or buffer.
        2. The code between two yields may run again on a resume, with the weights of a later moment loaded:
           it must not fail then; its results are replaced by the kept ones.
        3. How many stages there are depends on settings only. An early end is `Stage.until`.
        """

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """Anomaly score `[N]` of rows `[N, *shape]`: higher is more anomalous, whatever else is in the batch."""

    def own_threshold(self) -> float | None:
        """The score above which the method itself calls a row anomalous; None where its paper has no such rule."""
        return None

    def explain(self, x: Tensor) -> Explanation:
        """The score and, in the same pass, all else that the method can show."""
        return Explanation(self.score(x))

    def represent(self, x: Tensor) -> Tensor:
        """Features `[N, D]` for a shallow method to be fitted to; a method overrides it if `explain` costs more."""
        features = self.explain(x).features
        if features is None:
            raise SettingError(f"model.features={type(self).__name__}: it has no features to give")
        return features

    def in_hindsight(self, train: Rows, test: Rows) -> Iterator[tuple[dict[str, float], Tensor]]:
        """Hyper-parameters that papers choose by the test labels, each with its scores `[N]` of the test rows.

        Called of a detector that has learned, which stays as it is, and sees no label here either: the caller
        chooses. Nothing where no paper does so.
        """
        return iter(())

    def forget(self) -> None:
        """Learn without weights from elsewhere, for the untrained control; there is nothing to do where none come."""

    def learned(self, *names: str) -> None:
        """Register buffers whose shape only training knows; loading gives them the kept shape."""
        for name in names:
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(partial(take_shapes, names))


def take_shapes(
    names: Sequence[str], module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Give the buffers of these names the shapes of the kept ones; a function of the module, so that it pickles."""
    for name in names:
        if (kept := state.get(prefix + name)) is not None:
            setattr(module, name, torch.empty_like(kept, device=getattr(module, name).device))


class Adam(torch.optim.Adam):
    """torch's Adam without its guards against torch's compiler, which they import: a second and 100 MiB.

    Steps are compiled from a record of what they do, in which there is no optimiser.
    """

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class SGD(torch.optim.SGD):
    """torch's SGD, in the same way."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


class Adadelta(torch.optim.Adadelta):
    """torch's Adadelta, in the same way."""

    add_param_group = unwrap(torch.optim.Adadelta.add_param_group)
    step = torch.no_grad()(unwrap(torch.optim.Adadelta.step))


def adam(
    *modules: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Adam:
    """Adam over the parameters of `modules`, each update one fused pass; weight decay is added to gradients."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return Adam(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


class RMSProp(Optimizer):
    """RMSProp as TensorFlow 1 has it: mean squares begin at one, so that it starts slowly, and eps is in the root.

        v = alpha v + (1 - alpha) g^2,   w = w - lr g / sqrt(v + eps)

    Mean squares are made with it, since what a recorded step makes begins at zero.
    """

    add_param_group = unwrap(Optimizer.add_param_group)

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, alpha: float = 0.9, eps: float = 1e-10
    ) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["square"] = torch.ones_like(parameter, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        each = torch.ops.aten
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            squares = [self.state[weight]["square"] for weight in weights]
            each._foreach_mul_(squares, group["alpha"])
            each._foreach_addcmul_(squares, gradients, gradients, value=1 - group["alpha"])
            roots = each._foreach_sqrt(each._foreach_add(squares, group["eps"]))
            each._foreach_addcdiv_(weights, gradients, roots, value=-group["lr"])


def descend(optimizer: Optimizer, loss: Tensor, keep_graph: bool = False) -> None:
    """One step of `optimizer` down `loss`.

    Gradients are taken for the optimiser's own parameters and no others, so a loss that passes through
    another network costs no weight gradients there and leaves none behind. `keep_graph` when a later loss
    shares part of the graph.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep_graph)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # Fused optimisers go through memory as it lies, and a gradient need not lie as its parameter does.
        same = gradient.stride() == parameter.stride()
        parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
    optimizer.step()


def agreed(loss: Tensor) -> Tensor:
    """A loss as all processes of the run have it, for what a step decides by it; in a run of one, `loss` itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return loss
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def detached(**losses: Tensor) -> dict[str, Tensor]:
    """What a step gives back: its losses by name, cut from their graphs."""
    return {name: loss.detach() for name, loss in losses.items()}
