from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toys import Plan, dictated, rows

from anomaly_bench.detector import RMSProp
from anomaly_bench.errors import SettingError
from anomaly_bench.training import checkpoint
from anomaly_bench.training.checkpoint import (
    Checkpoint,
    Epoch,
    kept_fact,
    load_tensors,
    optimizer_tensors,
    previous_of,
    random_state,
    restore_random_state,
    save_tensors,
    save_weights,
)
from anomaly_bench.training.trainer import Trainer

HISTORY = [
    Epoch(0, "a", 1, {"error": 0.1}, 16, 0.5),
    Epoch(0, "a", 2, {"error": 1 / 3}, 16, 0.25, auroc=2 / 3),
]


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    module(x).square().mean().backward()
    optimizer.step()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.safetensors"
    tensors = {
        "model.a": torch.randn(2, 3),
        "model.b.c": torch.tensor(3),
        "random.cpu": torch.get_rng_state(),
    }
    groups = [[{"lr": 0.1, "betas": [0.5, 0.9], "params": [0, 1], "weight_decay": None}]]
    Checkpoint(1, 2, True, HISTORY, tensors, groups).save(path)
    back = Checkpoint.load(path)
    assert (back.stage, back.epoch, back.over, back.history, back.groups) == (1, 2, True, HISTORY, groups)
    assert back.tensors.keys() == tensors.keys()
    assert all(
        torch.equal(back.tensors[name], x) and back.tensors[name].dtype == x.dtype
        for name, x in tensors.items()
    )
    assert back.model.keys() == {"a", "b.c"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.9), fused=True),
        lambda p: torch.optim.Adam([{"params": [p[0]], "lr": 0.3}, {"params": p[1:]}], lr=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9),
        lambda p: RMSProp(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
    ids=["adam", "adam in groups", "rmsprop", "tensorflow's", "momentum", "sgd"],
)
def test_an_optimizer_goes_on_where_it_stood(tmp_path: Path, make) -> None:
    x, path = torch.randn(4, 3), tmp_path / "checkpoint.safetensors"
    module = nn.Linear(3, 2)
    optimizer = make(list(module.parameters()))
    for _ in range(3):
        stepped(module, optimizer, x)
    tensors, groups = optimizer_tensors([optimizer])
    Checkpoint(0, 1, False, [], tensors, groups).save(path)

    other = nn.Linear(3, 2)
    other.load_state_dict(module.state_dict())
    resumed = make(list(other.parameters()))
    Checkpoint.load(path).restore_optimizers([resumed])
    for _ in range(3):
        stepped(module, optimizer, x)
        stepped(other, resumed, x)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_optimizers_of_one_stage_are_not_mixed_up() -> None:
    modules = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizers = [
        torch.optim.Adam(module.parameters(), lr=lr) for module, lr in zip(modules, (0.1, 0.2), strict=True)
    ]
    for number, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True), 1):
        for _ in range(number):
            stepped(module, optimizer, torch.ones(1, 3))
    fresh = [torch.optim.Adam(module.parameters(), lr=1.0) for module in modules]
    Checkpoint(0, 1, False, [], *optimizer_tensors(optimizers)).restore_optimizers(fresh)
    assert [optimizer.param_groups[0]["lr"] for optimizer in fresh] == [0.1, 0.2]
    assert [
        int(optimizer.state[module.weight]["step"]) for module, optimizer in zip(modules, fresh, strict=True)
    ] == [
        1,
        2,
    ]
    with pytest.raises(ValueError, match="shorter"):
        Checkpoint(0, 1, False, [], *optimizer_tensors(optimizers[:1])).restore_optimizers(fresh)


def test_state_comes_back_in_the_memory_format_of_its_parameter(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    stepped(module, optimizer, torch.randn(2, 3, 5, 5))
    Checkpoint(0, 1, False, [], *optimizer_tensors([optimizer])).save(path)
    resumed = torch.optim.Adam(module.parameters(), fused=True)
    Checkpoint.load(path).restore_optimizers([resumed])
    for name in ("exp_avg", "exp_avg_sq"):
        ours, theirs = resumed.state[module.weight][name], optimizer.state[module.weight][name]
        assert ours.stride() == theirs.stride() == module.weight.stride()
        assert torch.equal(ours, theirs)
    assert resumed.state[module.weight]["step"].shape == ()


def test_random_states_come_back() -> None:
    cpu, order = torch.device("cpu"), torch.Generator().manual_seed(5)
    states = random_state(cpu, order)
    expected = torch.rand(3), torch.rand(3, generator=order)
    fresh = torch.Generator()
    restore_random_state({name.removeprefix("random."): x for name, x in states.items()}, cpu, fresh)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, generator=fresh), expected[1])


def test_weights_are_kept_whatever_their_layout_and_sharing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)).to(memory_format=torch.channels_last)
    module[1].register_buffer("tied", module[1].weight)
    module[1].register_buffer("view", torch.arange(6.0).view(2, 3).t())
    save_weights(path, module, auroc=0.1 + 0.2)
    back = load_file(path)
    assert back.keys() == module.state_dict().keys()
    assert all(torch.equal(back[name], x) for name, x in module.state_dict().items())
    assert kept_fact(path, "auroc") == 0.1 + 0.2
    assert kept_fact(tmp_path / "none.safetensors", "auroc") is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(0, 1, False, HISTORY, {"model.a": torch.ones(2)}).save(path)
    with pytest.raises(TypeError):
        Checkpoint(0, 2, False, HISTORY, {"model.a": torch.ones(2)}, [[{"lr": object()}]]).save(path)
    with pytest.raises(RuntimeError, match="memory format"):
        Checkpoint(0, 2, False, HISTORY, {"model.a": torch.eye(2).to_sparse()}).save(path)
    assert Checkpoint.load(path).epoch == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_is_replaced_and_never_written_in_place(tmp_path: Path) -> None:
    path, link = tmp_path / "checkpoint.safetensors", tmp_path / "first"
    Checkpoint(0, 1, False, HISTORY, {"model.a": torch.ones(2)}).save(path)
    link.hardlink_to(path)
    Checkpoint(0, 2, False, HISTORY, {"model.a": torch.zeros(2)}).save(path)
    assert (Checkpoint.load(path).epoch, Checkpoint.load(link).epoch) == (2, 1)


def test_each_epoch_replaces_the_file_of_the_last(tmp_path: Path) -> None:
    path, epochs = tmp_path / "checkpoint.safetensors", []
    trainer = Trainer(device="cpu", precision="fp32", eval_every=1)
    detector = dictated(Plan(epochs=3))

    def evaluate() -> float:
        epochs.append(Checkpoint.load(path).epoch if path.exists() else 0)
        return 0.5

    trainer.learn(detector, rows(), seed=0, keep=path, evaluate=evaluate)
    kept = Checkpoint.load(path)
    assert epochs == [0, 1, 2]
    assert (kept.epoch, kept.over, len(kept.history)) == (3, True, 3)
    assert all(torch.equal(kept.model[name], x) for name, x in detector.state_dict().items())
    assert Checkpoint.load(previous_of(path)).epoch == 2
    assert {file.name for file in tmp_path.iterdir()} == {path.name, previous_of(path).name}


def test_a_broken_file_is_refused_not_misread(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(0, 1, False, HISTORY, {"model.a": torch.ones(100)}).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Exception, match=r"(?i)incomplete|invalid|header"):
        Checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"no checkpoint at all, but long enough to look at"])
def test_a_broken_file_is_refused_by_name(tmp_path, content) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"checkpoint\.safetensors: not a safetensors file"):
        Checkpoint.load(path)


def damaged(path: Path, how: str) -> None:
    """A file as a bad disk may leave it."""
    content = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "without its last byte": content[:-1],
        "a block of zeros": content[:-200] + bytes(200),
        "one bit": content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
        "one number of its history": content.replace(b"0.1,", b"0.2,").replace(b"0.1}", b"0.2}"),
        "another kind of file": b"\x80\x04]\x94.",
    }[how]
    assert changed != content
    path.write_bytes(changed)


DAMAGES = [
    "empty",
    "cut",
    "without its last byte",
    "a block of zeros",
    "one bit",
    "one number of its history",
]


@pytest.mark.parametrize("how", [*DAMAGES, "another kind of file"])
def test_the_last_that_is_whole_is_gone_on_from(tmp_path: Path, how: str, caplog) -> None:
    path = tmp_path / "checkpoint.safetensors"
    assert Checkpoint.last(path) is None
    for epoch in (1, 2):
        Checkpoint(0, epoch, False, HISTORY, {"model.a": torch.randn(100)}).save(path)
    last = Checkpoint.last(path)
    assert last is not None
    assert (last.epoch, caplog.text) == (2, "")
    damaged(path, how)
    last = Checkpoint.last(path)
    assert last is not None
    assert last.epoch == 1
    assert str(path) in caplog.text
    damaged(previous_of(path), how)
    assert Checkpoint.last(path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("not enough memory")])
def test_what_cannot_be_read_now_is_not_taken_for_damaged(tmp_path: Path, monkeypatch, error) -> None:
    path = tmp_path / "checkpoint.safetensors"
    Checkpoint(0, 1, False, HISTORY, {"model.a": torch.randn(3)}).save(path)

    def refuse(*_):
        raise error

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    with pytest.raises(SettingError, match=r"checkpoint\.safetensors: cannot be read \(.*(files|memory)"):
        Checkpoint.last(path)
    monkeypatch.undo()
    assert Checkpoint.last(path) is not None


@pytest.mark.parametrize("how", DAMAGES[:-1])
def test_weights_that_are_not_what_was_written_are_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, nn.Linear(30, 20))
    assert load_tensors(path)[0].keys() == {"weight", "bias"}
    damaged(path, how)
    with pytest.raises(SettingError, match=r"model\.safetensors: .*damaged"):
        load_tensors(path)


@pytest.mark.parametrize(("was", "becomes"), [("weight", "height"), ("F32", "I32"), ("[20,30]", "[30,20]")])
def test_the_sum_is_of_names_kinds_and_shapes_too(tmp_path: Path, was: str, becomes: str) -> None:
    path = tmp_path / "model.safetensors"
    save_weights(path, nn.Linear(30, 20))
    content = path.read_bytes()
    assert was.encode() in content
    path.write_bytes(content.replace(was.encode(), becomes.encode(), 1))
    with pytest.raises(SettingError, match="its check sum is not"):
        load_tensors(path)


def test_files_of_older_versions_have_no_sum(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(3)}, path, {"auroc": "0.5"})
    tensors, facts = load_tensors(path)
    assert tensors["weight"].tolist() == [1, 1, 1]
    assert facts == {"auroc": "0.5"}


def test_weights_of_every_kind_have_a_sum(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.int64, torch.uint8)
    tensors = {f"{kind}": torch.ones(3).to(kind) for kind in kinds}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(1.0), "turned": torch.eye(3)[:2].T}
    save_tensors(path, tensors, {"fact": "1"})
    back, facts = load_tensors(path)
    assert facts == {"fact": "1"}
    assert all(torch.equal(back[name], x) for name, x in tensors.items())
