from layers import layers_of

from anomaly_bench.networks.cae import ConvDecoder, ConvEncoder


def test_layers_at_32_pixels_are_those_of_geotrans() -> None:
    assert layers_of(ConvEncoder((3, 32, 32), 256, 64)) == [
        "conv 3/2/1 3-64 no bias, bn, relu",
        "conv 3/2/1 64-128 no bias, bn, relu",
        "conv 3/2/1 128-256 no bias, bn, relu",
        "linear 4096-256, tanh",
    ]
    assert layers_of(ConvDecoder((3, 32, 32), 256, 64)) == [
        "linear 256-4096 no bias, bn, relu",
        "convT 3/2/1 256-128 no bias, bn, relu",
        "convT 3/2/1 128-64 no bias, bn, relu",
        "convT 3/2/1 64-3, tanh",
    ]


def test_at_64_pixels_there_is_one_stage_more() -> None:
    *_, fourth, last = layers_of(ConvEncoder((1, 64, 64), 256, 64))
    assert (fourth, last) == ("conv 3/2/1 256-512 no bias, bn, relu", "linear 8192-256, tanh")
    first, second, *_ = layers_of(ConvDecoder((1, 64, 64), 256, 64))
    assert (first, second) == ("linear 256-8192 no bias, bn, relu", "convT 3/2/1 512-256 no bias, bn, relu")
