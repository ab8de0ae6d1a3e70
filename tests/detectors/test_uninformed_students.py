import copy
from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from safetensors.torch import save_file
from steps import assert_same_weights, batch_of, noise
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from anomaly_bench.detector import Rows, Stage
from anomaly_bench.detectors import uninformed_students
from anomaly_bench.detectors.pretrained import Pretrained
from anomaly_bench.detectors.uninformed_students import UninformedStudents, held_out
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.patch import moved, patches_at, random_pixels, varied
from anomaly_bench.training.control import untrained
from anomaly_bench.training.scoring import score_rows

SHAPE = (1, 8, 6)


def small(shape: tuple[int, ...] = SHAPE, **settings: object) -> UninformedStudents:
    torch.manual_seed(0)
    small = {"patch_sizes": [17], "width": 4, "d": 6, "teacher_steps": 40, "batch_size": 8}
    return UninformedStudents(shape, **small | settings)  # pyright: ignore


def stages(detector: UninformedStudents, x: Tensor) -> list[Stage]:
    """All stages over rows `x`, none of them run."""
    with torch.no_grad():
        found = list(detector.eval().stages(Rows(x)))
    detector.train()
    return found


def described(net, x: Tensor, p: int = 17) -> Tensor:
    """Vectors `[N, H, W, d]`, by a patch at a time."""
    n, _, height, width = x.shape
    everywhere = [
        net(patches_at(x, torch.full((n,), row), torch.full((n,), column), p))
        for row in range(height)
        for column in range(width)
    ]
    return torch.stack(everywhere, 1).unflatten(1, (height, width))


def changed(detector, step, x: Tensor) -> set[str]:
    """The networks whose weights a step changes, by the first three parts of their names."""
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    step(batch_of(x))
    names = [name for name, p in detector.named_parameters() if not torch.equal(p, before[name])]
    return {".".join(name.split(".")[:3]).removesuffix(".layers") for name in names}


def correlated(t: Tensor) -> np.ndarray:
    return np.corrcoef(t.detach().double().numpy().T)


@pytest.fixture
def resnet(tmp_path):
    """A ResNet-18 with first weights and the features that read them from a file, which is given as well."""
    pytest.importorskip("timm")
    torch.manual_seed(3)
    net = resnet18(weights=None).eval()
    file = tmp_path / "resnet18.safetensors"
    save_file(net.state_dict(), file)
    return net, partial(Pretrained, backbone="resnet18", weights=str(file), input_size=32), file


# ------------------------------------------------------------------------------ teacher


@pytest.mark.parametrize("compactness", ["sum", "squares"])
def test_a_teacher_alone_learns_as_the_transcription(compactness):
    detector, x = small(compactness=compactness, lambda_c=0.003, delta=0.5), noise(8, SHAPE)
    stage = stages(detector, x)[0]
    assert stage.epochs == 40  # one step an epoch
    plain = copy.deepcopy(detector.scales[0].teacher)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    top, left = random_pixels(x)
    p = patches_at(x, top, left, 17)
    near = varied(patches_at(x, *moved(x, top, left, 2), 17))
    others = torch.stack([x[i - 1] for i in range(8)])
    far = patches_at(others, *random_pixels(x), 17)
    a, b, c = plain(p), plain(near), plain(far)
    l_m = 0.0
    for i in range(8):
        plus = ((a[i] - b[i]) ** 2).sum()
        minus = min(((a[i] - c[i]) ** 2).sum(), ((b[i] - c[i]) ** 2).sum())
        l_m = l_m + max(torch.zeros(()), 0.5 + plus - minus) / 8
    l_c = 0.0
    for i in range(6):
        for j in range(6):
            if i != j:
                u, v = a[:, i] - a[:, i].mean(), a[:, j] - a[:, j].mean()
                c_ij = (u * v).sum() / ((u**2).sum() * (v**2).sum()).sqrt()
                l_c = l_c + (c_ij if compactness == "sum" else c_ij**2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=2e-4, weight_decay=1e-5)
    (l_m + 0.003 * l_c).backward()
    optimizer.step()
    assert losses["metric"].item() == pytest.approx(l_m.item(), rel=1e-5)
    assert losses["compactness"].item() == pytest.approx(l_c.item(), rel=1e-4, abs=1e-4)
    of_numpy = correlated(a) if compactness == "sum" else correlated(a) ** 2
    assert l_c.item() == pytest.approx(of_numpy.sum() - np.trace(of_numpy), rel=1e-4, abs=1e-4)
    assert_same_weights(detector.scales[0].teacher, plain)


def test_a_distilled_teacher_learns_what_the_resnet_says(resnet):
    net, features, _ = resnet
    detector, x = small(features=features, lambda_c=0.01), noise(8, SHAPE)
    stage = stages(detector, x)[0]
    plain = copy.deepcopy(detector.scales[0])
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    patches = patches_at(x, *random_pixels(x), 17)
    rgb = torch.cat([(interpolate(patches, (32, 32), mode="bilinear", antialias=True) + 1) / 2] * 3, 1)
    rgb = (rgb - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    pooled: list[Tensor] = []
    net.avgpool.register_forward_hook(lambda *args: pooled.append(args[2].flatten(1)))
    with torch.no_grad():
        net(rgb)
    vectors = plain.teacher(patches)
    error = plain.decode(vectors) - pooled[0]
    apart = torch.corrcoef(vectors.T) ** 2
    l_k, l_c = (error**2).sum() / 8, apart.sum() - apart.trace()
    optimizer = torch.optim.Adam(
        [*plain.teacher.parameters(), *plain.decode.parameters()], 2e-4, weight_decay=1e-5
    )
    (l_k + 0.01 * l_c).backward()
    optimizer.step()
    assert losses["distillation"].item() == pytest.approx(l_k.item(), rel=1e-4)
    assert losses["compactness"].item() == pytest.approx(l_c.item(), rel=1e-3)
    for ours, theirs in zip(detector.scales[0].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert changed(detector, stage.step, x) == {"scales.0.teacher", "scales.0.decode"}


def test_the_features_stay_as_they_were_learned(resnet):
    net, features, _ = resnet
    detector = small(features=features, teacher_steps=2, epochs=1, patch_sizes=[17, 33])
    assert [stage.name for stage in learned_stages(detector, noise(20, SHAPE))] == [
        *("teacher_17", "students_17", "teacher_33", "students_33")
    ]
    for scale in detector.scales:
        kept = scale.features.backbone.net.state_dict()
        assert all(torch.equal(kept[name], x) for name, x in net.state_dict().items() if name in kept)
        assert scale.decode.out_features == 512


def learned_stages(detector, x: Tensor) -> list[Stage]:
    """All stages, each of its steps taken in training mode."""
    found = []
    detector.train()
    for stage in detector.stages(Rows(x)):
        for _ in range(stage.epochs):
            stage.step(batch_of(x))
        found.append(stage)
    return found


# ------------------------------------------------------------------------------ students


def test_students_learn_as_the_transcription_and_nothing_else_moves():
    detector, x = small(students=2), noise(20, SHAPE)
    stage = stages(detector, x)[1]
    assert (stage.epochs, stage.batch_size) == (100, 8)
    scale = copy.deepcopy(detector.scales[0])
    rows = torch.tensor([4, 9, 13, 19])  # the second and the last are held out
    losses = stage.step(batch_of(x[rows])._replace(index=rows))

    optimizer = torch.optim.Adam(scale.students.parameters(), lr=1e-4, weight_decay=1e-5)
    target = ((described(scale.teacher, x[[4, 13]]) - scale.mean) / scale.std).detach()
    loss = 0.0
    for student in scale.students:
        for row, y in zip((4, 13), target, strict=True):
            loss = loss + ((described(student, x[[row]])[0] - y) ** 2).sum() / 48 / 2
    loss.backward()
    optimizer.step()
    assert losses["regression"].item() == pytest.approx(loss.item(), rel=1e-4)
    for ours, theirs in zip(detector.scales[0].parameters(), scale.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert changed(detector, stage.step, x) == {"scales.0.students"}


def test_students_begin_apart():
    first, second, third = small().scales[0].students
    assert not torch.equal(first.layers[0].weight, second.layers[0].weight)
    assert not torch.equal(second.layers[0].weight, third.layers[0].weight)


def test_targets_are_standardised_over_the_rows_that_are_learned():
    detector, x = small(), noise(20, SHAPE)
    stages(detector, x)
    scale = detector.scales[0]
    learned = torch.tensor([i for i in range(20) if i not in (9, 19)])
    with torch.no_grad():
        vectors = described(scale.teacher, x[learned]).flatten(0, 2)
        target = scale.target(x[learned]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(scale.mean, vectors.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scale.std, vectors.std(0, correction=0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(target.mean(1), torch.zeros(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(target.std(1), torch.ones(6), rtol=1e-3, atol=0)


def test_who_is_held_out():
    assert held_out(torch.arange(25), 25).nonzero()[:, 0].tolist() == [9, 19]
    assert held_out(torch.arange(4), 4).tolist() == [False, False, False, True]
    with pytest.raises(SettingError, match="at least 2 training rows, found 1"):
        stages(small(), noise(1, SHAPE))


# ------------------------------------------------------------------------------ scores


def maps_of(detector, x: Tensor, held: Tensor) -> Tensor:
    """Equation (12), a patch at a time."""
    maps = torch.zeros(len(x), *SHAPE[1:])
    for scale, p in zip(detector.scales, (17, 33), strict=False):

        def e_and_v(x, scale=scale, p=p):
            y = (described(scale.teacher, x, p) - scale.mean) / scale.std
            s = [described(student, x, p) for student in scale.students]
            mean = sum(s) / len(s)
            v = sum((one**2).sum(3) for one in s) / len(s) - (mean**2).sum(3)
            return ((mean - y) ** 2).sum(3), v

        for ours, normal in zip(e_and_v(x), e_and_v(held), strict=True):
            maps += (ours - normal.mean()) / normal.std(correction=0) / len(detector.scales)
    return maps


@pytest.mark.parametrize("sizes", [[17], [17, 33]])
def test_the_map_is_error_and_disagreement_by_what_is_usual(sizes, monkeypatch):
    monkeypatch.setattr(uninformed_students, "ON_A_CPU", 3 * 48)
    detector, train, x = small(patch_sizes=sizes), noise(20, SHAPE), noise(4, SHAPE, seed=2)
    assert [stage.name for stage in stages(detector, train)] == (
        ["teacher", "students"]
        if len(sizes) == 1
        else ["teacher_17", "students_17", "teacher_33", "students_33"]
    )
    with torch.no_grad():
        expected = maps_of(detector, x, train[[9, 19]])
        explained = detector.explain(x)
        torch.testing.assert_close(explained.map, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(explained.score, explained.map.flatten(1).amax(1))
        assert torch.equal(detector.score(x), explained.score)
        detector.image_score = "mean"
        torch.testing.assert_close(detector.score(x), expected.flatten(1).mean(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 17, 17), (2, 8, 6)])
def test_a_whole_image_is_one_patch_and_has_no_map(shape):
    detector, train, x = small(shape, whole=True), noise(20, shape), noise(4, shape, seed=2)
    assert [stage.name for stage in stages(detector, train)] == ["teacher", "students"]
    scale = detector.scales[0]

    def e_and_v(x):
        x = interpolate(x, (17, 17), mode="bilinear", antialias=True)
        y = (scale.teacher(x) - scale.mean) / scale.std
        s = torch.stack([student(x) for student in scale.students])
        return ((s.mean(0) - y) ** 2).sum(1), s.var(0, correction=0).sum(1)

    with torch.no_grad():
        expected = sum(
            (ours - normal.mean()) / normal.std(correction=0)
            for ours, normal in zip(e_and_v(x), e_and_v(train[[9, 19]]), strict=True)
        )
        explained = detector.eval().explain(x)
        torch.testing.assert_close(explained.score, expected, rtol=1e-3, atol=1e-3)
        assert explained.map is None
        seen = patches_at(*scale.patches(x), 17)
        torch.testing.assert_close(seen, interpolate(x, (17, 17), mode="bilinear", antialias=True))


def test_one_student_disagrees_with_nobody():
    detector, train = small(students=1), noise(20, SHAPE)
    stages(detector, train)
    with torch.no_grad():
        assert not detector.scales[0].error_and_variance(train)[:, 1].any()
        assert detector.score(train).isfinite().all()


def test_a_trained_run_scores_without_the_file(resnet):
    _, features, file = resnet
    detector = small(features=features)
    state = detector.state_dict()
    file.unlink()
    again = small(features=features)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again.score(noise(2, SHAPE)), detector.score(noise(2, SHAPE)))


def test_the_control_of_a_distilled_teacher_has_random_features(resnet):
    net, features, file = resnet
    file.unlink()  # and so it does not ask for them

    def build() -> UninformedStudents:
        return small(features=features)

    control, how = untrained(build, Rows(noise(20, SHAPE)), seed=0)
    assert how == "random weights in place of pretrained ones"
    assert not torch.equal(control.scales[0].features.backbone.net.conv1.weight, net.conv1.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": 0}, r"model\.students=0"),
        ({"patch_sizes": []}, r"model\.patch_sizes=\[\]"),
        ({"patch_sizes": [17, 17]}, r"model\.patch_sizes=\[17, 17\]"),
        ({"image_score": "sum"}, r"model\.image_score=sum: allowed are max, mean"),
        ({"compactness": "no"}, r"model\.compactness=no: allowed are sum, squares"),
        ({"shape": (7,)}, r"needs images, found rows of shape \(7,\)"),
        (
            {"shape": (2, 9, 9), "features": Pretrained},
            r"model\.features: .* takes images of 1 or 3 channels",
        ),
        (
            {"features": partial(Pretrained, backbone="resnet1")},
            r"model\.features\.backbone=resnet1: timm has none",
        ),
    ],
)
def test_what_is_not_allowed_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)


# ------------------------------------------------------------------------------ real data


def test_learning_tells_new_twos_from_other_digits():
    train, test, anomalous = digits(normal=2, size=12)

    def build() -> UninformedStudents:
        return small(train.shape, epochs=15, batch_size=24, lr=5e-3, teacher_lr=1e-3)

    control, _ = untrained(build, train, seed=0)
    detector = learn(build(), train)
    for image_score in ("max", "mean"):
        control.image_score = detector.image_score = image_score
        before, after = auroc(control, test, anomalous), auroc(detector, test, anomalous)
        assert after > 0.9
        assert 1 - after < 0.5 * (1 - before)


def test_scores_are_those_of_the_layers_as_they_are_written():
    detector, rows = small((1, 28, 28), patch_sizes=[17, 33, 65]), Rows(noise(4, (1, 28, 28)))
    plain, folded = (
        score_rows(detector, rows, precision="fp32", batch_size=4, fold=fold) for fold in (False, True)
    )
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
