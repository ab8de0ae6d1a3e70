import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from toys import Dictated, Plan, dictated, rows

from anomaly_bench.detector import Rows, Stage
from anomaly_bench.errors import SettingError
from anomaly_bench.training import trainer as training
from anomaly_bench.training.capture import Prepared
from anomaly_bench.training.checkpoint import Checkpoint
from anomaly_bench.training.trainer import DivergedError, Learned, Trainer, leave_untrained


def trainer(**settings) -> Trainer:
    return Trainer(**{"device": "cpu", "precision": "fp32"} | settings)


def learn(detector: Dictated, seed: int = 0, **settings) -> Learned:
    return trainer(**settings).learn(detector, rows(), seed=seed)


def epochs_by_stage(learned: Learned) -> dict[str, int]:
    return {line.name: line.epoch for line in learned.history}


def same(a: Dictated, b: Dictated) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"a": 4, "b": 9}),
        ({"epoch_scale": 0.5}, {"a": 2, "b": 4}),
        ({"epoch_scale": 0.3}, {"a": 1, "b": 3}),
        ({"epoch_scale": 2.0}, {"a": 8, "b": 18}),
        ({"epoch_scale": 0.01}, {"a": 1, "b": 1}),
        ({"max_epochs": 5}, {"a": 4, "b": 5}),
        ({"epoch_scale": 0.5, "max_epochs": 3}, {"a": 2, "b": 3}),
        ({"max_epochs": 0}, {}),
    ],
)
def test_epochs(settings: dict, expected: dict[str, int]) -> None:
    learned = learn(dictated(Plan("a", 4), Plan("b", 9)), **settings)
    assert epochs_by_stage(learned) == expected
    assert len(learned.history) == sum(expected.values())


def test_a_stage_without_epochs_gets_none_whatever_the_scale() -> None:
    assert epochs_by_stage(learn(dictated(Plan("a", 0), Plan("b", 1)), epoch_scale=3.0)) == {"b": 3}


@pytest.mark.parametrize(
    ("told", "own", "setting"), [(1, 4, "trainer.batch_size"), (None, 1, "model.batch_size")]
)
@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_batch_of_one_row_that_batch_norm_cannot_take_is_refused(told, own, setting, compile) -> None:
    with pytest.raises(SettingError, match=f"{setting}=1: batch norm .*; allowed is from 2"):
        learn(dictated(Plan(batch_size=own)), batch_size=told, compile=compile)


def test_another_error_of_a_step_with_one_row_stays_what_it_is() -> None:
    detector = dictated(Plan(loss=failing))
    detector.net[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="something else"):
        learn(detector, batch_size=1)


def failing(_: int) -> float:
    raise ValueError("something else")


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [4] * 4), (7, [7, 7]), (18, [18]), (500, [18])])
def test_batches_are_whole_and_as_large_as_told(batch_size: int | None, expected: list[int]) -> None:
    plan = Plan(epochs=1)
    learned = learn(dictated(plan), batch_size=batch_size)
    assert [len(batch) for batch in plan.seen] == expected
    assert learned.history[0].rows == sum(expected)


def test_each_epoch_has_an_order_of_its_own() -> None:
    plan = Plan(epochs=2, batch_size=18)
    learn(dictated(plan))
    assert sorted(plan.seen[0]) == sorted(plan.seen[1]) == list(range(18))
    assert plan.seen[0] != plan.seen[1]


def test_history_numbers_stages_from_0_and_epochs_from_1() -> None:
    learned = learn(dictated(Plan("a", 2), Plan("b", 1)))
    assert [(line.stage, line.name, line.epoch) for line in learned.history] == [
        (0, "a", 1),
        (0, "a", 2),
        (1, "b", 1),
    ]
    assert all(line.auroc is None for line in learned.history)
    assert learned.seconds >= sum(line.seconds for line in learned.history) > 0


@pytest.mark.parametrize("steps", [4, 120])
def test_losses_are_means_over_all_steps_of_the_epoch(steps: int) -> None:
    plan = Plan(epochs=2, batch_size=2, loss=float)
    learned = trainer().learn(dictated(plan), rows(2 * steps), seed=0)
    first, second = learned.history
    assert first.losses == pytest.approx({"error": (steps + 1) / 2, "half": (steps + 1) / 4})
    assert second.losses["error"] == pytest.approx(steps + (steps + 1) / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [3, 60, 101])
def test_a_loss_that_is_no_number_ends_the_run_and_says_where(value: float, at: int) -> None:
    plan = Plan("second", batch_size=2, loss=lambda step: value if step == at else 1.0)
    detector = dictated(Plan("first", 1), plan)
    epoch, step = (1, at) if at <= 100 else (2, at - 100)
    with pytest.raises(
        DivergedError, match=f"stage second, epoch {epoch}, step {step}: loss 'error' is {value}"
    ):
        trainer().learn(detector, rows(200), seed=0)


def test_a_diverged_run_is_refused_in_one_line_naming_what_to_change() -> None:
    with pytest.raises(SettingError, match=r"model\.lr.*trainer\.precision") as refusal:
        learn(dictated(Plan(loss=lambda _: math.nan)))
    assert "\n" not in str(refusal.value)


def test_until_ends_a_stage_early_and_the_next_one_follows() -> None:
    plan = Plan("a", 9, loss=lambda step: 1 / step, until=lambda losses: losses["error"] < 0.1)
    learned = learn(dictated(plan, Plan("b", 2)))
    assert epochs_by_stage(learned) == {"a": 3, "b": 2}  # the mean of 1/9 .. 1/12 is 0.096


def test_until_is_given_the_means_of_each_epoch_that_is_not_the_last() -> None:
    given: list[dict[str, float]] = []
    learned = learn(dictated(Plan(until=lambda losses: bool(given.append(losses)))))
    assert given == [line.losses for line in learned.history[:-1]]


@pytest.mark.parametrize(
    ("every", "evaluated"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (4, [4, 5]), (9, [5])]
)
def test_every_so_many_epochs_and_the_last_are_evaluated(every: int, evaluated: list[int]) -> None:
    calls: list[int] = []
    learned = trainer(eval_every=every).learn(
        dictated(Plan(epochs=5)), rows(), seed=0, evaluate=lambda: float(calls.append(0) or len(calls))
    )
    assert [line.epoch for line in learned.history if line.auroc is not None] == evaluated
    assert [line.auroc for line in learned.history if line.auroc] == [1.0 + n for n in range(len(evaluated))]


def test_an_epoch_that_ends_its_stage_early_is_evaluated() -> None:
    plan = Plan("a", 9, loss=lambda step: 1 / step, until=lambda losses: losses["error"] < 0.1)
    learned = trainer(eval_every=5).learn(dictated(plan), rows(), seed=0, evaluate=lambda: 0.5)
    assert [line.auroc for line in learned.history] == [None, None, 0.5]


def test_stages_without_a_score_are_not_evaluated() -> None:
    plans = Plan("a", 2, scorable=False), Plan("b", 2)
    learned = trainer(eval_every=1).learn(dictated(*plans), rows(), seed=0, evaluate=lambda: 0.5)
    assert [line.auroc for line in learned.history] == [None, None, 0.5, 0.5]


def test_same_seed_same_bits_and_another_seed_others() -> None:
    first, again, other = dictated(), dictated(), dictated()
    for detector, seed in ((first, 3), (again, 3), (other, 4)):
        torch.rand(seed)
        learn(detector, seed)
    assert same(first, again)
    assert not same(first, other)


def test_bf16_keeps_weights_and_statistics_in_float32() -> None:
    exact, rounded = dictated(), dictated()
    learn(exact)
    learned = learn(rounded, precision="bf16")
    assert all(x.dtype == torch.float32 for x in rounded.state_dict().values() if x.is_floating_point())
    assert all(math.isfinite(value) for line in learned.history for value in line.losses.values())
    assert not same(exact, rounded)
    torch.testing.assert_close(rounded.net[1].running_mean, exact.net[1].running_mean, rtol=0.2, atol=0.05)


def test_nothing_is_drawn_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    learn(dictated())
    assert capfd.readouterr() == ("", "")


def test_steps_run_in_training_mode_and_the_code_between_them_does_not() -> None:
    seen: list[tuple[str, bool, bool]] = []

    class Watched(Dictated):
        def stages(self, train: Rows):
            for plan in self.plans:
                seen.append(("between", self.training, torch.is_grad_enabled()))
                yield self.stage(plan)
            seen.append(("between", self.training, torch.is_grad_enabled()))

        def stage(self, plan: Plan) -> Stage:
            plan.loss = lambda _: float(seen.append(("step", self.training, torch.is_grad_enabled())) or 1)
            return super().stage(plan)

    detector = Watched(Plan(epochs=1, batch_size=18), Plan(epochs=1, batch_size=18))
    learn(detector)
    between, step = ("between", False, False), ("step", True, True)
    assert seen == [between, step, between, step, between]
    assert not detector.training


def test_a_finished_checkpoint_is_not_trained_further(tmp_path) -> None:
    keep, plan = tmp_path / "checkpoint.safetensors", Plan()
    first, second = dictated(), dictated(plan, seed=1)
    whole = trainer().learn(first, rows(), seed=0, keep=keep)
    again = trainer().learn(second, rows(), seed=0, keep=keep)
    assert plan.seen == []
    assert again.history == whole.history
    assert same(first, second)


def test_a_run_that_diverges_keeps_its_last_good_epoch(tmp_path) -> None:
    keep = tmp_path / "checkpoint.safetensors"
    plan = Plan(loss=lambda step: math.nan if step == 10 else 1.0)
    with pytest.raises(DivergedError, match="epoch 3, step 2"):
        trainer().learn(dictated(plan), rows(), seed=0, keep=keep)
    kept = Checkpoint.load(keep)
    assert (kept.stage, kept.epoch, kept.over) == (0, 2, False)


def test_until_is_kept_so_that_an_early_end_stays_one(tmp_path) -> None:
    keep = tmp_path / "checkpoint.safetensors"
    trainer().learn(dictated(Plan(epochs=5, until=lambda _: True)), rows(), seed=0, keep=keep)
    plan = Plan(epochs=5)
    learned = trainer().learn(dictated(plan), rows(), seed=0, keep=keep)
    assert (plan.seen, len(learned.history)) == ([], 1)


def test_many_epochs_are_kept_evenly_spaced_and_the_last(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "KEPT", 3)
    told: list[int] = []
    trainer().learn(
        dictated(Plan(epochs=7)),
        rows(),
        seed=0,
        keep=tmp_path / "checkpoint.safetensors",
        tell=lambda history: told.append(len(history)),
    )
    assert told == [2, 4, 6, 7]


def test_a_run_that_stopped_in_a_later_stage_repeats_no_earlier_one(tmp_path) -> None:
    keep = tmp_path / "checkpoint.safetensors"
    broken = Plan("b", loss=lambda step: math.nan if step == 6 else 1.0)
    with pytest.raises(DivergedError):
        trainer().learn(dictated(Plan("a"), broken), rows(), seed=0, keep=keep)
    first, second = Plan("a"), Plan("b")
    learned = trainer().learn(dictated(first, second), rows(), seed=0, keep=keep)
    assert (len(first.seen), len(second.seen)) == (0, 8)
    assert [(line.name, line.epoch) for line in learned.history] == [(n, e) for n in "ab" for e in (1, 2, 3)]


def test_learning_takes_the_seconds_of_epochs_and_of_what_is_between_stages(monkeypatch) -> None:
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    learned = learn(dictated(Plan("a", 2), Plan("b", 1)))
    assert [line.seconds for line in learned.history] == [1, 1, 1]
    assert learned.seconds == 3 + 3  # the code before, between and after two stages


def test_how_steps_run_is_decided_by_all_steps_of_a_stage_and_told(monkeypatch) -> None:
    asked = []

    def recorded(mode, detector, stage, batch, n_steps, *_) -> Prepared:
        asked.append((mode, n_steps))
        return Prepared(stage.step, "graph")

    monkeypatch.setattr(training, "prepared", recorded)
    learned = learn(dictated(Plan(epochs=5)))
    assert asked == [("auto", 4 * 5)]
    assert {line.step for line in learned.history} == {"graph"}


def test_leave_untrained_walks_all_stages_and_runs_none(monkeypatch) -> None:
    plans = Plan("a"), Plan("b")
    detector, first, walked = dictated(*plans), dictated(*plans), []
    stages = detector.stages
    monkeypatch.setattr(
        detector, "stages", lambda train: (walked.append(one.name) or one for one in stages(train))
    )
    leave_untrained(detector, rows())
    assert walked == ["a", "b"]
    assert same(detector, first)
    assert plans[0].seen == plans[1].seen == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "trainer.batch_size=0: must be at least 1"),
        ({"max_epochs": -1}, "trainer.max_epochs=-1: must be at least 0"),
        ({"eval_every": -1}, "trainer.eval_every=-1: must be at least 0"),
        ({"epoch_scale": 0.0}, "trainer.epoch_scale=0.0: must be above 0"),
        ({"precision": "fp16"}, "trainer.precision=fp16: allowed are auto, fp32, bf16"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        trainer(**settings)


def test_no_rows_are_refused() -> None:
    with pytest.raises(SettingError, match="protocol"):
        trainer().learn(dictated(), Rows(torch.zeros(0, 4)), seed=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_of_rows_and_weights(channels_last: bool) -> None:
    def is_last(x: Tensor) -> bool:
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

    chosen = trainer(channels_last=channels_last)
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert is_last(chosen.rows(images, 0.5, 0.5).take(torch.arange(2))) is channels_last
    detector = dictated()
    detector.convolution = torch.nn.Conv2d(3, 4, 3)
    assert is_last(chosen.place(detector).convolution.weight) is channels_last


class Doubled(Dictated):
    needs_float64 = True


@pytest.mark.parametrize("nested", [False, True])
def test_mps_is_refused_where_a_detector_or_one_within_it_computes_in_float64(nested, monkeypatch) -> None:
    there, detector = trainer(), Dictated() if nested else Doubled()
    detector.features = Doubled() if nested else torch.nn.Identity()
    assert there.place(detector) is detector
    there.device = torch.device("mps")
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    with pytest.raises(
        SettingError, match=r"^trainer\.device=mps: Doubled computes in float64.*allowed is cpu$"
    ):
        there.place(detector)
    plain = dictated()
    assert there.place(plain) is plain


def test_only_an_accelerator_has_a_copy_of_chosen_rows() -> None:
    x, chosen = torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, 7, 3])
    here, there = trainer(), trainer()
    there.device = torch.device("meta")
    assert here.rows(x, 0.5, 0.5, chosen).x is x
    copied = there.rows(x, 0.5, 0.5, chosen)
    assert (len(copied), len(copied.x), copied.device.type) == (3, 3, "meta")
