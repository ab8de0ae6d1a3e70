"""What networks of convolutions refuse."""

from anomaly_bench.errors import SettingError


def check_images(shape: tuple[int, ...]) -> None:
    """Refuse rows of numbers, saying which methods take them."""
    if len(shape) != 3:
        raise SettingError(
            f"model: a convolutional network needs images, found rows of shape {shape}; rows are taken by "
            "model=ocsvm, knn, isolation_forest, dagmm and others, of which anomaly-bench recommend tries a few"
        )
