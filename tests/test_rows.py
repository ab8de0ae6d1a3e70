import pytest
import torch
from torch import Tensor

from anomaly_bench.rows import Rows, fingerprints, numbers_of, of_known_rows


def images(n: int = 10) -> Tensor:
    """Each holds its own number in its first pixel."""
    x = torch.randint(0, 256, (n, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x[:, 0, 0, 0] = torch.arange(n)
    return x


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixels_are_scaled_when_taken() -> None:
    rows = Rows(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), mean=0.2, std=0.4)
    taken = rows.take(torch.tensor([0, 1, 2]))
    assert taken.dtype == torch.float32
    torch.testing.assert_close(taken.flatten(), torch.tensor([-0.5, 0.0, 2.0]))


def test_a_subset_is_those_rows_and_no_copy() -> None:
    x = images()
    all_of_them = Rows(x, mean=0.2, std=0.4, channels_last=True)
    some = all_of_them.subset(torch.tensor([7, 2, 9, 4]))
    assert (len(some), some.shape) == (4, (3, 4, 5))
    assert some.x is x
    fewer = some.subset(torch.tensor([2, 0]))
    for rows, expected in ((some, [7, 2, 9, 4]), (fewer, [9, 7])):
        taken = torch.cat([batch.x for batch in rows.in_order(3)])
        assert torch.equal(taken, all_of_them.take(torch.tensor(expected)))
        assert taken[:1].is_contiguous(memory_format=torch.channels_last)
    seen = [batch.index for batch in some.shuffled(2, seeded())]
    assert sorted(torch.cat(seen).tolist()) == [0, 1, 2, 3]


def test_pixels_span_minus_one_to_one_by_default() -> None:
    rows = Rows(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    assert rows.take(torch.arange(2)).flatten().tolist() == [-1, 1]


def test_numbers_are_taken_as_they_are() -> None:
    x = torch.randn(6, 3)
    assert torch.equal(Rows(x, mean=3.0, std=9.0).take(torch.tensor([4, 1])), x[[4, 1]])


def test_taking_leaves_the_rows_alone() -> None:
    for x in (images(), torch.randn(10, 3)):
        rows = Rows(x.clone())
        rows.take(torch.arange(10)).zero_()
        assert torch.equal(rows.x, x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(channels_last: bool) -> None:
    taken = Rows(images(), channels_last=channels_last).take(torch.arange(4))
    assert taken.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert Rows(torch.randn(6, 3), channels_last=channels_last).take(torch.arange(4)).is_contiguous()
    assert torch.equal(taken, Rows(images()).take(torch.arange(4)))


def test_what_rows_say_of_themselves() -> None:
    rows = Rows(images())
    assert (len(rows), rows.shape, rows.device.type) == (10, (3, 4, 5), "cpu")
    assert Rows(torch.randn(6, 3)).shape == (3,)


@pytest.mark.parametrize(("wanted", "size", "steps"), [(3, 3, 3), (5, 5, 2), (10, 10, 1), (64, 10, 1)])
def test_an_epoch_has_whole_batches_only(wanted: int, size: int, steps: int) -> None:
    rows = Rows(images())
    assert (rows.batch_size(wanted), rows.steps(wanted)) == (size, steps)
    batches = list(rows.shuffled(wanted, seeded()))
    assert [len(batch.x) for batch in batches] == [size] * steps
    seen = torch.cat([batch.index for batch in batches])
    assert len(seen.unique()) == len(seen) == size * steps


def test_batches_hold_the_rows_that_their_numbers_say() -> None:
    rows = Rows(images())
    for batch in [*rows.shuffled(4, seeded()), *rows.in_order(4)]:
        assert batch.index.dtype == torch.int64
        assert torch.equal(batch.x, rows.take(batch.index))


def test_the_generator_alone_decides_the_order() -> None:
    rows = Rows(images())

    def order(generator: torch.Generator) -> list[int]:
        return torch.cat([batch.index for batch in rows.shuffled(5, generator)]).tolist()

    torch.manual_seed(1)
    first = order(seeded())
    torch.manual_seed(2)
    generator = seeded()
    assert order(generator) == first
    assert order(generator) != first
    assert order(seeded(1)) != first


def test_in_order_gives_every_row_once() -> None:
    batches = list(Rows(images()).in_order(4))
    assert [len(batch.x) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))


def test_map_is_the_function_over_all_rows_in_float32() -> None:
    rows = Rows(images())
    sums = rows.map(lambda x: x.double().flatten(1).sum(1), batch_size=3)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, rows.take(torch.arange(10)).flatten(1).sum(1))


def test_fingerprints_are_of_the_bits_alone() -> None:
    x = torch.rand(50, 3, 4, 5)
    x[7] = x[3]
    keys = fingerprints(x)
    assert len(keys.unique()) == 49
    assert keys[7] == keys[3]
    assert torch.equal(fingerprints(x.to(memory_format=torch.channels_last)), keys)
    assert torch.equal(torch.cat([fingerprints(part) for part in x.split(7)]), keys)
    x[0, 0, 0, 0] = x[0, 0, 0, 0].nextafter(torch.tensor(2.0))
    assert fingerprints(x)[0] != keys[0]


def test_fingerprints_are_those_of_other_days() -> None:
    """Weights hold the fingerprints of the rows they have learned."""
    assert fingerprints(torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 1.0]])).tolist() == [
        912479692722798592,
        6123421689196838912,
    ]


def test_values_of_known_rows_are_looked_up() -> None:
    x, otherwise = torch.rand(6, 3), -torch.arange(6.0)
    known, order = fingerprints(x[[4, 1]]).sort()
    values = torch.tensor([40.0, 10.0])[order]
    assert of_known_rows(x, known, values, otherwise).tolist() == [0, 10, -2, -3, 40, -5]
    assert of_known_rows(x[4:5], known, values, otherwise[4:5]).tolist() == [40]
    assert torch.equal(of_known_rows(x, known[:0], values[:0], otherwise), otherwise)


def test_rows_are_known_by_their_numbers() -> None:
    rows = Rows(images())
    known, number = rows.fingerprints()
    assert torch.equal(known, known.sort().values)
    x = torch.cat([rows.take(torch.tensor([7, 0])), torch.rand(1, *rows.shape)])
    assert numbers_of(x, known, number).tolist() == [7, 0, -1]
    part = rows.subset(torch.tensor([4, 7]))
    assert numbers_of(x, *part.fingerprints()).tolist() == [1, -1, -1]
