import torch

from anomaly_bench.networks.parts import in_parts


def test_parts_have_the_size_of_the_device_and_are_never_empty() -> None:
    x = torch.arange(5)
    assert [len(part) for part in in_parts(x, 2)] == [2, 2, 1]
    assert [len(part) for part in in_parts(x, 2, on_a_cpu=4)] == [4, 1]
    assert [len(part) for part in in_parts(x.to("meta"), 2, on_a_cpu=4)] == [2, 2, 1]
    assert len(in_parts(x, 0)) == len(in_parts(x, 9, on_a_cpu=0)) == 5
