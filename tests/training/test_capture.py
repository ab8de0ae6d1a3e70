"""A step recorded as one graph does what it does when it runs as it is written."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from toys import dictated, rows

from anomaly_bench.detector import Batch, Detector, Rows, Stage, adam, descend, detached
from anomaly_bench.detectors.f_anogan import FAnoGAN
from anomaly_bench.detectors.ganomaly import GANomaly
from anomaly_bench.training import capture
from anomaly_bench.training.capture import prepared, worthwhile
from anomaly_bench.training.trainer import Trainer

SHAPE = (1, 16, 16)


def images(n: int = 40) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows(torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8))


def ganomaly() -> GANomaly:
    return GANomaly(SHAPE, nz=4, ngf=8, ndf=8, batch_size=8, epochs=2)


def f_anogan() -> FAnoGAN:
    return FAnoGAN(SHAPE, nz=4, width=4, n_critic=2, batch_size=8, epochs=2, encoder_steps=6)


def learned(build: Callable[[], Detector], **settings: object) -> tuple[dict[str, Tensor], list]:
    """State and history of a detector trained with these settings of the trainer."""
    torch.manual_seed(0)
    trainer = Trainer(device="cpu", precision="fp32", **settings)  # pyright: ignore[reportArgumentType]
    detector = trainer.place(build())
    history = trainer.learn(detector, images(), seed=0).history
    return detector.state_dict(), history


class Odd(Detector):
    """Rebuilds rows by one layer; each test says what else its step does."""

    def __init__(self, oddity: Callable[["Odd", Tensor], Tensor]) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)
        self.oddity = oddity
        self.calls = 0

    def stages(self, train: Rows) -> Iterator[Stage]:
        optimizer = adam(self.net, lr=1e-2)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.net(batch.x), batch.x) * self.oddity(self, batch.x)
            descend(optimizer, loss)
            return detached(error=loss)

        yield Stage("only", 2, step, (optimizer,), 4)

    def score(self, x: Tensor) -> Tensor:
        return self.net(x).sum(1)


def every_second(detector: Odd, x: Tensor) -> Tensor:
    detector.calls += 1
    return torch.tensor(float(detector.calls % 2))


def looks(detector: Odd, x: Tensor) -> Tensor:
    return x.new_tensor(2.0) if x.sum().item() > 0 else x.new_tensor(1.0)


def test_a_replayed_step_gives_the_same_bits() -> None:  # every method: test_conformance.py
    expected, epochs = learned(ganomaly, compile="off")
    state, history = learned(ganomaly, compile="graph", gemm=False)
    assert {line.step for line in history} == {"graph"}
    assert [line.losses for line in history] == [line.losses for line in epochs]
    assert all(torch.equal(state[name], x) for name, x in expected.items())


def test_matrix_products_change_a_step_by_rounding_only() -> None:
    torch.manual_seed(0)
    detector = ganomaly().double()
    copied = copy.deepcopy(detector)
    batch = Batch(torch.randn(8, *SHAPE, dtype=torch.float64), torch.arange(8))
    stages = [next(iter(each.stages(images()))) for each in (detector, copied)]
    runs = [
        prepared("graph", each, stage, batch, 1, nullcontext, gemm)
        for each, stage, gemm in zip((detector, copied), stages, (True, False), strict=True)
    ]
    for _ in range(3):
        losses, expected = (run.step(batch) for run in runs)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(dict(detector.state_dict()), dict(copied.state_dict()))


def test_preparing_a_step_changes_nothing() -> None:
    torch.manual_seed(0)
    detector = ganomaly()
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    stage, train = next(iter(detector.stages(images()))), images()
    batch, random = Batch(train.take(torch.arange(8)), torch.arange(8)), torch.get_rng_state()
    prepared("graph", detector, stage, batch, 1, nullcontext)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    assert not any(value.any() for value in capture.optimizer_state(stage.optimizers))
    assert all(parameter.grad is None for parameter in detector.parameters())


def draws_and_switches(detector: Odd, x: Tensor) -> Tensor:
    detector.eval()
    return torch.rand(())


def test_what_preparing_a_step_draws_and_switches_is_undone() -> None:
    detector = Odd(draws_and_switches).train()
    stage, random = next(iter(detector.stages(rows()))), torch.get_rng_state()
    how = prepared("graph", detector, stage, Batch(torch.ones(4, 4), torch.arange(4)), 1, nullcontext).how
    assert how == "graph"
    assert torch.equal(torch.get_rng_state(), random)
    assert detector.training
    assert detector.net.training


@pytest.mark.parametrize(("mode", "warned"), [("graph", True), ("auto", False)])
def test_who_asks_for_a_graph_is_told_that_there_is_none(mode, warned, monkeypatch, caplog) -> None:
    monkeypatch.setattr(capture, "ROWS_FROM", 1)
    detector = Odd(every_second)
    stage = next(iter(detector.stages(rows())))
    how = prepared(mode, detector, stage, Batch(torch.ones(4, 4), torch.arange(4)), 1, nullcontext).how
    assert how == "eager: it changes calls"
    assert ("stage only runs as it is written: it changes calls" in caplog.text) is warned


def trained(seed: int, mode: str, train: Rows) -> tuple[Tensor, Tensor]:
    """Weights after one run, and the last loss."""
    torch.manual_seed(seed)
    detector = Odd(lambda *_: torch.ones(()))
    history = Trainer(device="cpu", precision="fp32", compile=mode).learn(detector, train, seed=0).history
    assert history[-1].step == {"off": "eager"}.get(mode, mode)
    return detector.net.weight.detach(), torch.tensor(history[-1].losses["error"])


def test_a_small_step_that_inductor_compiles_comes_to_the_same_weights_and_losses() -> None:
    ends = trained(0, "inductor", rows()), trained(0, "off", rows())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_runs_share_a_compiled_step_and_have_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(capture, "COMPILED", {})
    monkeypatch.setattr("torch._inductor.compile", lambda graph, *_, **__: compiled.append(graph) or graph)

    for seed in (0, 1):
        ends = trained(seed, "inductor", rows()), trained(seed, "off", rows())
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
    assert len(compiled) == 1
    trained(0, "inductor", rows(3))
    assert len(compiled) == 2, "batches of another size have a step of their own"


@pytest.mark.parametrize(("oddity", "why"), [(every_second, "calls"), (looks, "")])
def test_a_step_that_is_not_the_same_every_time_runs_as_it_is_written(
    oddity: Callable[[Odd, Tensor], Tensor], why: str
) -> None:
    ends = []
    for mode in ("off", "graph"):
        torch.manual_seed(0)
        detector = Odd(oddity)
        history = (
            Trainer(device="cpu", precision="fp32", compile=mode).learn(detector, rows(), seed=0).history
        )
        ends.append(detector.net.weight.detach().clone())
    assert history[-1].step.startswith("eager: ")
    assert why in history[-1].step
    assert torch.equal(*ends)
    assert detector.calls in (0, 8)


def test_stages_are_prepared_as_their_work_deserves() -> None:
    assert [worthwhile(operations, 0, 1000) for operations in (10**6, 10**10, 10**12)] == [
        "off",
        "graph",
        "inductor",
    ]
    assert [worthwhile(0, calls, 20_000) for calls in (100, 300)] == ["off", "inductor"]
    assert worthwhile(0, 20_000, 300) == "off"
    _, history = learned(ganomaly)
    assert {line.step for line in history} == {"eager"}


def test_auto_counts_the_operations_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "ROWS_FROM", 1)
    monkeypatch.setattr(capture, "GRAPH_FROM", 10)
    _, history = learned(ganomaly)
    assert {line.step for line in history} == {"graph"}


def test_a_rehearsal_counts_operations_and_calls() -> None:
    def step(batch: Batch) -> dict[str, Tensor]:
        return {"loss": (batch.x @ batch.x).exp()}

    stage = Stage("only", 1, step, ())
    work, _ = capture.rehearsed(step, dictated(), stage, Batch(torch.eye(4), torch.arange(4)))
    assert (work.total, work.calls) == (2 * 4**3, 2)


def test_numbers_of_a_closure_and_of_an_optimiser_are_seen_and_put_back() -> None:
    count = 0
    detector = dictated()
    optimizer = adam(detector, lr=1.0)

    def step(batch: Batch) -> dict[str, Tensor]:
        nonlocal count
        count += 1
        optimizer.param_groups[0]["lr"] /= 2
        return {}

    stage = Stage("only", 1, step, (optimizer,))
    work, changed = capture.rehearsed(step, detector, stage, Batch(torch.empty(0), torch.empty(0)))
    assert changed == ["lr of group 0 of optimiser 0", "count of its closure"]
    assert (work.total, count, optimizer.param_groups[0]["lr"]) == (0, 0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [ganomaly, f_anogan])
def test_a_compiled_step_gives_the_same_losses(build: Callable[[], Detector]) -> None:
    _, expected = learned(build, compile="off")
    _, history = learned(build, compile="inductor")
    assert {line.step for line in history} == {"inductor"}
    for line, other in zip(history, expected, strict=True):
        assert line.losses == pytest.approx(other.losses, rel=1e-2)


def test_a_compiler_that_talks_of_itself_is_not_heard(caplog, recwarn) -> None:
    chatty = logging.getLogger("torch.utils.cpp_extension")
    with capture.quiet():
        chatty.warning("no CUDA runtime is found")
        warnings.warn_explicit(
            "deprecated", FutureWarning, "lowering.py", 1, module="torch._inductor.lowering"
        )
        warnings.warn_explicit("deprecated", FutureWarning, "mine.py", 1, module="mine")
    assert [str(one.filename) for one in recwarn] == ["mine.py"]
    chatty.warning("heard")
    assert [one.message for one in caplog.records if one.name == chatty.name] == ["heard"]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_compiled_update_of_adam_is_adams(decay: float) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(7, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=1e-2, betas=(0.5, 0.999), weight_decay=decay, eps=0.1)
    ours, mean, square = weight.detach().clone(), torch.zeros(7).double(), torch.zeros(7).double()
    count = torch.zeros(())
    for _ in range(5):
        weight.grad = torch.randn(7, dtype=torch.float64)
        optimizer.step()
        count += 1
        capture.fused_adam(
            [ours], [weight.grad], [mean], [square], [], [count],
            lr=1e-2, beta1=0.5, beta2=0.999, weight_decay=decay, eps=0.1, amsgrad=False, maximize=False,
        )  # fmt: skip
    torch.testing.assert_close(ours, weight.detach(), rtol=1e-6, atol=0)


def test_a_compiled_update_is_of_plain_adam_only() -> None:
    plain = {"lr": 1e-2, "beta1": 0.5, "beta2": 0.9, "weight_decay": 0.0, "eps": 0.1}
    plain |= {"amsgrad": False, "maximize": False}
    assert capture.fused_adam([], [], [], [], [], [], **plain) is None
    for other in ({"amsgrad": True}, {"maximize": True}, {"grad_scale": torch.ones(())}):
        assert capture.fused_adam([], [], [], [], [], [], **plain | other) is NotImplemented


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("build", [ganomaly, f_anogan])
def test_a_cuda_graph_gives_the_losses_of_the_step_as_written(build: Callable[[], Detector]) -> None:
    histories = []
    for mode in ("off", "graph"):
        torch.manual_seed(0)
        trainer = Trainer(device="cuda", precision="fp32", compile=mode)
        detector = trainer.place(build())
        train = trainer.rows(images().x, 0.5, 0.5)
        histories.append(trainer.learn(detector, train, seed=0).history)
    assert {line.step for line in histories[1]} == {"graph"}
    for line, other in zip(*histories, strict=True):
        assert line.losses == pytest.approx(other.losses, rel=1e-2)
