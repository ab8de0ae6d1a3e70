"""What networks of convolutions refuse."""

from anomaly_bench.errors import SettingError


def check_images(shape: tuple[int, ...]) -> None:
    """Refuse rows of numbers, saying which methods take them."""
    if len(shape) != 3:
        raise SettingError(
            f"model: a convolutional network needs images, found rows of shape {shape}; rows are taken by "
            "model=ocsvm, knn, isolation_forest, dagmm and others, of which anomaly-bench recommend tries a few"
        )


def check_multiple(shape: tuple[int, ...], step: int) -> tuple[int, int, int]:
    """`shape` of images `(C, H, W)` whose sides are multiples of `step`; anything else is a SettingError."""
    check_images(shape)
    channels, height, width = shape
    if height % step or width % step:
        raise SettingError(
            f"data.image_size: found images of {height} x {width}; this network takes sides that are "
            f"multiples of {step} (nearest: {max(step, step * round(height / step))})"
        )
    return channels, height, width
