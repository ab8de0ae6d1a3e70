import copy

import pytest
import torch
from layers import assert_first_weights, layers_of
from torch import nn
from torch.nn import functional as F

from anomaly_bench.detector import Batch
from anomaly_bench.detectors.ganomaly import GANomaly
from anomaly_bench.errors import SettingError
from anomaly_bench.rows import Rows


def small(**settings) -> GANomaly:
    torch.manual_seed(0)
    return GANomaly((1, 32, 32), **{"nz": 8, "ngf": 4, "ndf": 4} | settings)


def images(number: int = 16, shape: tuple[int, ...] = (1, 32, 32)) -> torch.Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def step_of(detector: GANomaly):
    detector.train()
    return next(iter(detector.stages(Rows(torch.zeros(16, *(1, 32, 32), dtype=torch.uint8))))).step


class Transcription:
    """The update of the official code's last version, with its losses or the paper's; every term has its own passes."""

    def __init__(self, detector: GANomaly, w_adv: float = 1, w_con: float = 50, w_enc: float = 1) -> None:
        self.ge, self.gd, self.e, self.d = (
            copy.deepcopy(net)
            for net in (detector.encode, detector.decode, detector.reencode, detector.discriminate)
        )
        for net in (self.ge, self.gd, self.e, self.d):
            net.train()
        self.weights, self.losses = (w_adv, w_con, w_enc), detector.losses
        generator = [*self.ge.parameters(), *self.gd.parameters(), *self.e.parameters()]
        self.opt_g = torch.optim.Adam(generator, lr=2e-4, betas=(0.5, 0.999))
        self.opt_d = torch.optim.Adam(self.d.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def judge(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.d.features(x)
        return features, torch.sigmoid(self.d.head(features)).view(-1)

    def update(self, x: torch.Tensor) -> dict[str, float]:
        w_adv, w_con, w_enc = self.weights
        z = self.ge(x)
        x_hat = self.gd(z)
        z_hat = self.e(x_hat)

        real, fake = self.judge(x)[0], self.judge(x_hat)[0]
        l_con = (x - x_hat).abs().mean()
        if self.losses == "paper":
            l_adv = ((real - fake.mean(0)) ** 2).sum((1, 2, 3)).sqrt().mean()
            l_enc = ((z_hat - z) ** 2).sum((1, 2, 3)).sqrt().mean()
        else:
            l_adv = ((real - fake) ** 2).mean()
            l_enc = ((z_hat - z) ** 2).mean()
        self.opt_g.zero_grad()
        l_g = w_adv * l_adv + w_con * l_con + w_enc * l_enc
        gradients_of_d = {name: p.detach().clone() for name, p in self.d.named_parameters()}
        l_g.backward()
        self.opt_g.step()
        assert all(torch.equal(p, gradients_of_d[name]) for name, p in self.d.named_parameters())

        self.opt_d.zero_grad()
        real, fake = self.judge(x)[1], self.judge(x_hat.detach())[1]
        l_d = -0.5 * (torch.log(real).mean() + torch.log(1 - fake).mean())
        l_d.backward()
        self.opt_d.step()
        return {"adv": l_adv.item(), "con": l_con.item(), "enc": l_enc.item(), "d": l_d.item()}


@pytest.mark.parametrize("version", ["head", "paper"])
def test_three_updates_equal_the_transcription_of_the_equations(version):
    detector = small(losses=version)
    plain = Transcription(detector)
    step = step_of(detector)
    for number in range(3):
        x = images(16) * (1 - 0.1 * number)
        losses = step(Batch(x, torch.arange(16)))
        for name, expected in plain.update(x).items():
            assert losses[name].item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
    ours = (detector.encode, detector.decode, detector.reencode, detector.discriminate)
    for net, theirs in zip(ours, (plain.ge, plain.gd, plain.e, plain.d), strict=True):
        for (name, a), b in zip(net.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("weight", ["w_adv", "w_con", "w_enc"])
def test_each_weight_of_the_loss_moves_the_generator(weight):
    detectors = [small(), small(**{weight: 0.0})]
    for detector in detectors:
        step_of(detector)(Batch(images(), torch.arange(16)))
    assert not torch.equal(*(detector.encode.head.weight for detector in detectors))


def test_the_first_version_steps_the_discriminator_first_on_the_sum_and_fools_it():
    detector = small(losses="first")
    plain = Transcription(detector)
    x = images()
    losses = step_of(detector)(Batch(x, torch.arange(16)))

    z = plain.ge(x)
    x_hat = plain.gd(z)
    real, fake = plain.judge(x)[1], plain.judge(x_hat.detach())[1]
    l_d = F.binary_cross_entropy(real, torch.ones(16)) + F.binary_cross_entropy(fake, torch.zeros(16))
    plain.opt_d.zero_grad()
    l_d.backward()
    plain.opt_d.step()
    l_adv = F.binary_cross_entropy(plain.judge(x_hat)[1], torch.ones(16))
    l_g = l_adv + 50 * (x - x_hat).abs().mean() + ((plain.e(x_hat) - z) ** 2).mean()
    plain.opt_g.zero_grad()
    l_g.backward()
    plain.opt_g.step()

    assert losses["d"].item() == pytest.approx(l_d.item(), abs=1e-5)
    assert losses["adv"].item() == pytest.approx(l_adv.item(), abs=1e-5)
    for a, b in zip(detector.encode.parameters(), plain.ge.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(detector.discriminate.parameters(), plain.d.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("losses", ["head", "first"])
def test_a_discriminator_that_has_won_is_replaced_after_both_updates(losses):
    """So the generator's update is that of the discriminator that there was."""
    detectors = [small(losses=losses, reinit_below=below) for below in (100.0, 0.0)]
    told = [step_of(detector)(Batch(images(), torch.arange(16))) for detector in detectors]
    assert [losses["reinit"].item() for losses in told] == [1, 0]
    assert told[0]["adv"] == told[1]["adv"]
    replaced, kept = detectors
    for part in ("encode", "decode", "reencode"):
        for a, b in zip(getattr(replaced, part).parameters(), getattr(kept, part).parameters(), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(replaced.discriminate.head.weight, kept.discriminate.head.weight)


def test_it_then_has_dcgan_weights_and_not_its_old_ones():
    detector = small(reinit_below=100.0, lr=0.0)
    before = detector.discriminate.head.weight.clone()
    step_of(detector)(Batch(images(), torch.arange(16)))
    after = detector.discriminate.head.weight
    assert not torch.equal(before, after)
    assert 0.01 < after.std() < 0.03


def test_the_threshold_of_that_is_a_setting():
    always, never = small(reinit_below=100.0), small(reinit_below=0.0)
    batch = Batch(images(), torch.arange(16))
    assert step_of(always)(batch)["reinit"] == 1
    assert step_of(never)(batch)["reinit"] == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_score_is_the_distance_of_the_two_codes(norm):
    detector = small(score_norm=norm).eval()
    x = images(5)
    with torch.no_grad():
        z = detector.encode(x)
        gap = (z - detector.reencode(detector.decode(z))).flatten(1)
        expected = gap.abs().mean(1) if norm == "l1" else (gap**2).mean(1)
        torch.testing.assert_close(detector.score(x), expected)
        explained = detector.explain(x)
    torch.testing.assert_close(explained.score, expected)
    assert explained.map.shape == (5, 32, 32)
    assert explained.reconstruction.shape == x.shape
    assert explained.features.shape == (5, 4 * 4 * 4 * 4)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (4, 64, 64), (1, 128, 128)])
def test_any_size_of_16_times_a_power_of_two_and_any_channels(shape):
    detector = GANomaly(shape, nz=5, ngf=2, ndf=2).eval()
    z, fake, z_hat = detector(images(2, shape))
    assert z.shape == z_hat.shape == (2, 5, 1, 1)
    assert fake.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 80, 80), (1, 32, 64), (1, 8, 8)])
def test_other_sizes_are_refused_with_the_allowed_ones(shape):
    with pytest.raises(SettingError, match=r"data\.image_size.*16 times a power of two"):
        GANomaly(shape)


def test_rows_of_numbers_and_unknown_choices_are_refused():
    with pytest.raises(SettingError, match="needs images"):
        GANomaly((30,))
    with pytest.raises(SettingError, match="head, first, paper"):
        small(losses="last")
    with pytest.raises(SettingError, match="l1, l2"):
        small(score_norm="linf")
    with pytest.raises(SettingError, match=r"model\.extralayers=-1"):
        small(extralayers=-1)


def test_the_layers_are_those_of_the_official_code_at_32_pixels():
    detector = GANomaly((1, 32, 32))
    convolutions = [tuple(p.shape) for p in detector.encode.parameters() if p.dim() == 4]
    assert convolutions == [(64, 1, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (100, 256, 4, 4)]
    upwards = [tuple(p.shape) for p in detector.decode.parameters() if p.dim() == 4]
    assert upwards == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 1, 4, 4)]
    assert detector.discriminate.head.weight.shape == (1, 256, 4, 4)
    assert next(m for m in detector.encode.features if isinstance(m, nn.BatchNorm2d)).num_features == 128


def test_the_second_encoder_is_like_the_first():
    for settings in ({}, {"extralayers": 1}):
        detector = small(**settings)
        assert layers_of(detector.reencode) == layers_of(detector.encode)


def test_first_weights_are_dcgans_in_all_networks():
    assert_first_weights(small(), 0.02)


def test_extra_layers_keep_the_size_behind_the_first_stage_and_before_the_last():
    plain, deeper = small(), small(extralayers=2)
    z, fake, _ = deeper.eval()(images(2))
    assert z.shape == (2, 8, 1, 1)
    assert fake.shape == (2, 1, 32, 32)
    kernel = (4, 4, 3, 3)
    for name, place in {"encode": 1, "decode": 3, "reencode": 1, "discriminate": 1}.items():
        before, after = (
            [tuple(p.shape) for p in getattr(d, name).parameters() if p.dim() == 4] for d in (plain, deeper)
        )
        assert after == [*before[:place], kernel, kernel, *before[place:]], name
        count = [sum(p.numel() for p in getattr(d, name).parameters()) for d in (plain, deeper)]
        assert count[1] - count[0] == 2 * (4 * 4 * 9 + 4 + 4), name
    kinds = [type(m) for m in deeper.decode][-8:-2]
    assert kinds == 2 * [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(m) for m in deeper.encode.features][2:8] == 2 * [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
