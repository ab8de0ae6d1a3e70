"""Features of a network that has learned ImageNet, for a shallow method to be fitted to.

DN2: Bergman, Cohen, Hoshen, Deep Nearest Neighbor Anomaly Detection, 2020, https://arxiv.org/abs/2002.10445 (code in
talreiss/PANDA). SPADE: Cohen, Hoshen, 2020, https://arxiv.org/abs/2005.02357 (unofficial code:
byungjae89/SPADE-pytorch). Gaussian: Rippel, Mertens, Merhof, ICPR 2020, https://arxiv.org/abs/2005.14140.

Such features part objects already, so that any model of where normal rows lie is a strong detector:

    model=pretrained               pooled features, the sum of squared distances to the 2 nearest training rows
    model=pretrained_patches       features of each place, the nearest of any training image: a map, like SPADE
    model=pretrained_mahalanobis   pooled features, one Gaussian
    model=pretrained_ocsvm         pooled features, each standardised, a one-class SVM
    model=isolation_forest +features@model.features=backbone

ImageNet holds the classes of CIFAR-10 and of cats and dogs: the numbers do not compare with those of methods that
learn from the training rows alone, and tables say so. The untrained control is the same network with random weights,
and what is fitted to its features is fitted to the training rows, so that it shows what ImageNet adds.

Where we differ: the papers' networks (ResNet-152, WRN-50-2) need a download or a file of weights; the default is a
small network whose weights a package ships. DN2 takes features as they are, others give them the length 1 first, which
is the default here (`model.normalise`): lengths differ much among those of small networks. DN2 resizes to 256 pixels
and crops 224, here the whole image is resized to the network's own size, as small images have things at their border
too. SPADE searches only the 50 images whose pooled features are nearest, here a random choice of places of all training
images is searched; its score of an image is that of pooled features, here it is the largest of the map. Fine-tuning,
as in PANDA, is not here.

When to use it: First of all on photographs of things, also when normal images are few: nothing is trained, a
score is one forward pass and a comparison. On CIFAR-10, one class normal, .953 is printed for a detector on
frozen ImageNet features (NeuTraL AD) and .962 for PANDA's fine-tuned ones, where GeoTrans from scratch has
.860. Take `pretrained` for another kind of object, `pretrained_patches` for small defects and a map of where,
`pretrained_mahalanobis` for one kind of object at a fixed cost for each score.

Traps: `data.image_size` comes before the network: `data=folder` shrinks images to 64 pixels, which are then
enlarged again without their detail, so set `data.image_size=224`; likewise a small
`model.features.input_size` gives poor features. Printed numbers are of large networks (ResNet-152; SPADE's
.855 on MVTec AD of WRN-50-2): say which `model.features.backbone` a number has. With patches one odd place
decides, as the score is the largest value of the map, and `model.max_patches` may keep too few places to know
every normal one. Random features are no blank either: read the gain over the control, not over .5.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.backbone import Backbone


class Pretrained(Detector):
    """Features, and no score, of images `[N, C, H, W]` in [-1, 1], C 1 or 3, as `networks/backbone.py` takes them.

    Args:
        shape: of one image.
        backbone: name of the network in timm.
        weights: `packaged` (of tf_efficientnet_lite0), `timm`, which fetches them, or a .safetensors file or torch
            state dict, which is read without executing anything.
        patches: a vector of each place, `[N, D, h, w]`, in place of a pooled one, `[N, D]`.
        layers: whose maps patches are taken from, as timm counts them.
        input_size: pixels of the side that images are resized to; None for the network's own.
    """

    pretrained: ClassVar[bool] = True

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        backbone: str = "tf_efficientnet_lite0",
        weights: str = "packaged",
        patches: bool = False,
        layers: Sequence[int] = (2, 3),
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        if patches and not layers:
            raise SettingError("model.features.layers=[]: patches need at least one")
        self.backbone = Backbone(shape, backbone, layers if patches else (), input_size)
        self.weights: str | None = weights

    def stages(self, train: Rows) -> Iterator[Stage]:
        """None: the weights are read. Until then they are random, so that a kept state can be loaded without them."""
        if self.weights is not None:
            self.backbone.learn_from(self.weights)
        return iter(())

    def forget(self) -> None:
        """Leave the weights random."""
        self.weights = None

    def represent(self, x: Tensor) -> Tensor:
        """Pooled features `[N, D]`, or those of each place, `[N, D, h, w]`."""
        return self.backbone(x)

    def score(self, x: Tensor) -> Tensor:
        """Refused: features alone have no score."""
        raise SettingError(
            "model: pretrained features alone have no score; allowed is to put them under the features of knn, "
            "mahalanobis, ocsvm or isolation_forest"
        )
