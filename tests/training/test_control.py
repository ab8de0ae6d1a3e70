from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from toys import Plan, dictated, rows

from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.training.control import NOISE_ROWS, noise_like, untrained


class Mean(Detector):
    """Without gradients: the distance from the mean."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.learned("centre")

    def stages(self, train: Rows) -> Iterator[Stage]:
        self.centre = train.map(nn.Flatten()).mean(0)
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.centre).norm(dim=1)


class MeanOfCodes(Mean):
    """A stage of gradients, and then the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = dictated(Plan())

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from self.embedding.stages(train)
        yield from super().stages(train)


def test_gradients_are_left_out_and_weights_stay_the_first() -> None:
    plan = Plan()
    detector, how = untrained(lambda: dictated(plan), rows(), seed=0)
    first = dictated(plan).state_dict()
    assert how == "no gradient epochs"
    assert plan.seen == []
    assert all(torch.equal(x, first[name]) for name, x in detector.state_dict().items())


def test_what_is_fitted_between_stages_is_fitted_to_the_training_rows() -> None:
    detector, how = untrained(MeanOfCodes, rows(), seed=0)
    assert how == "no gradient epochs"
    assert isinstance(detector, MeanOfCodes)
    torch.testing.assert_close(detector.centre, rows().x.mean(0))


def test_a_method_without_gradients_is_fitted_to_noise() -> None:
    train = rows()
    detector, how = untrained(Mean, train, seed=0)
    assert how == "fitted to noise"
    assert isinstance(detector, Mean)
    torch.testing.assert_close(detector.centre, noise_like(train, 0).x.mean(0))
    assert not torch.allclose(detector.centre, train.x.mean(0), atol=0.05)


class Moving(MeanOfCodes):
    """A mean that every fit moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.fits = 0

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from super().stages(train)
        self.fits += 1


def test_between_stages_nothing_is_fitted_to_noise() -> None:
    fitted = []

    class Told(MeanOfCodes):
        def stages(self, train: Rows) -> Iterator[Stage]:
            yield from super().stages(train)
            fitted.append(train)

    train = rows()
    untrained(Told, train, seed=0)
    assert fitted == [train]


def test_what_was_fitted_to_noise_on_the_way_is_not_scored() -> None:
    detector, _ = untrained(Moving, rows(), seed=0)
    assert detector.fits == 1


class Borrowed(Mean):
    """Its first weights make way for those that were learned elsewhere, and then the mean is taken."""

    pretrained = True

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.elsewhere = True

    def stages(self, train: Rows) -> Iterator[Stage]:
        if self.elsewhere:
            self.scale.fill_(7.0)
        yield from super().stages(train)

    def forget(self) -> None:
        self.elsewhere = False


class OnBorrowed(Mean):
    """A mean of its own beside what is pretrained."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Borrowed()

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from self.features.stages(train)
        yield from super().stages(train)


@pytest.mark.parametrize("kind", [Borrowed, OnBorrowed])
def test_pretrained_weights_make_way_for_random_ones_and_the_rest_is_fitted_to_the_training_rows(
    kind,
) -> None:
    detector, how = untrained(kind, rows(), seed=0)
    assert how == "random weights in place of pretrained ones"
    assert getattr(detector, "features", detector).scale == 1
    torch.testing.assert_close(detector.centre, rows().x.mean(0))


@pytest.mark.parametrize("channels_last", [False, True])
def test_noise_is_of_the_rows_kind(channels_last: bool) -> None:
    images = Rows(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), 0.2, 0.4, channels_last)
    noise = noise_like(images, 0)
    assert (noise.x.dtype, noise.x.shape) == (torch.uint8, (NOISE_ROWS, 1, 8, 8))
    assert (noise.mean, noise.std, noise.memory_format) == (0.2, 0.4, images.memory_format)
    assert abs(noise.x.float().mean().item() - 127.5) < 2
    numbers = noise_like(rows(), 0)
    assert (numbers.x.dtype, numbers.x.shape) == (torch.float32, (NOISE_ROWS, 4))


def test_noise_is_the_seeds() -> None:
    assert torch.equal(noise_like(rows(), 0).x, noise_like(rows(), 0).x)
    assert not torch.equal(noise_like(rows(), 0).x, noise_like(rows(), 1).x)
