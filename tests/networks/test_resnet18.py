import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.resnet18 import ResNet18


@pytest.mark.parametrize("side", [16, 33])
def test_it_is_torchvisions_with_another_stem(side):
    torch.manual_seed(0)
    net, theirs = ResNet18(3).eval(), resnet18(weights=None).eval()
    theirs.conv1, theirs.maxpool, theirs.fc = (
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.Identity(),
        nn.Identity(),
    )
    ours = net.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours, strict=True)))
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert net.out_features == 512


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 28, 17), (1, 1, 1)])
def test_any_size(shape):
    net = ResNet18(shape[0], width=2).eval()
    assert net(torch.zeros(3, *shape)).shape == (3, 16)


def test_no_width_is_refused():
    with pytest.raises(SettingError, match=r"model\.width=0"):
        ResNet18(1, 0)
