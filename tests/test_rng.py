import numpy as np
import pytest
import torch

from sfumato import rng, twister
from sfumato.rng import OwnRows, SampleNoise, derive, generator, seeded


def test_the_whole_seed_enters_the_stream():
    """Torch keeps 32 bits of a seed on the CPU: seeds that differ above them would give one stream."""
    first, second = _same_low_bits()
    assert derive(first, "sample") & 0xFFFFFFFF == derive(second, "sample") & 0xFFFFFFFF
    one, other = (torch.rand(8, generator=generator(seed, "sample")) for seed in (first, second))
    assert not torch.equal(one, other)
    with seeded(first, "sample", device=torch.device("cpu")):
        one = torch.rand(8)
    with seeded(second, "sample", device=torch.device("cpu")):
        other = torch.rand(8)
    assert not torch.equal(one, other)


def _same_low_bits() -> tuple[int, int]:
    """Two seeds whose derived seeds agree in the lower 32 bits; a birthday search finds them below 300,000."""
    seen: dict[int, int] = {}
    for seed in range(1_000_000):
        low = derive(seed, "sample") & 0xFFFFFFFF
        if low in seen:
            return seen[low], seed
        seen[low] = seed
    raise AssertionError("no two seeds agree")


def test_streams_are_uniform_and_uncorrelated():
    values = torch.stack([torch.rand(1000, generator=generator(seed, "test")) for seed in range(64)])
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - 1 / 12) < 0.002
    correlation = torch.corrcoef(values) - torch.eye(64)
    assert correlation.abs().max() < 0.16  # 4.9 standard deviations of 1 / sqrt(1000); 2016 pairs


def test_a_name_gives_the_same_stream_on_every_machine():
    """The first numbers of one stream, recorded: a change of torch's layout of a generator's state would move them."""
    words = np.random.SeedSequence(derive(7, "sample")).generate_state(624, np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    expected = [int(twister.random_raw()) & (2**24 - 1) for _ in range(5)]  # torch's float32 keeps 24 bits
    made = torch.rand(5, generator=generator(7, "sample"))
    assert (made.double() * 2**24).tolist() == expected


def test_seeded_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(1, device=torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_depends_on_its_own_seed_alone():
    together = SampleNoise([3, 4])((2, 5))
    alone = SampleNoise([4])((1, 5))
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("words", [1, 5, 623, 624, 625, 20_000])
@pytest.mark.parametrize("before", [0, 1, 623, 624, 1000])
def test_skipped_words_are_those_that_would_have_been_drawn(
    words: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, and by a jump: the numbers afterwards are the same, and so is the state that torch accepts."""
    expected = _after(before, words)
    for far in (words + 1, words):
        monkeypatch.setattr(twister, "FAR", far)
        g = generator(3, "skipped")
        torch.rand(before, generator=g)
        twister.skip(g, words)
        assert torch.equal(torch.rand(1300, generator=g), expected)


def _after(before: int, words: int) -> torch.Tensor:
    g = generator(3, "skipped")
    return torch.rand(before + words + 1300, generator=g)[before + words :]


def test_jumps_of_any_length_add_up() -> None:
    """Lengths that nobody draws: a jump of a + b ends where a jump of a and then of b does."""
    one, two = generator(5, "far"), generator(5, "far")
    twister.skip(one, 10**15 + 12_345_678)
    twister.skip(two, 10**15)
    twister.skip(two, 12_345_678)
    assert torch.equal(torch.rand(700, generator=one), torch.rand(700, generator=two))


def test_the_characteristic_polynomial_is_that_of_the_generator() -> None:
    """Of degree 19937 with 135 terms, as published (Matsumoto and Nishimura 1998, Table II)."""
    assert twister.characteristic().bit_length() - 1 == 19937
    assert twister.characteristic().bit_count() == 135


@pytest.mark.parametrize("rows", [(1, 2, 4), (3, 4, 2), (2, 1, 3), (2, 3, 1)])
@pytest.mark.parametrize("far", [1, 1 << 22])
def test_own_rows_are_those_of_the_whole_draw(
    rows: tuple[int, int, int], far: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of draws one after the other, and where a block of 16 numbers has rows of two processes."""
    monkeypatch.setattr(twister, "FAR", far)
    monkeypatch.setattr(rng, "FEW", 0)
    shapes = [(4, 2, 8), (4, 1, 1), (3, 3, 3), (1, 16)]
    source = generator(0, "noise", 7)
    whole = [torch.randn(*rows, *shape, generator=source) for shape in shapes]
    for rank in range(rows[1]):
        own = OwnRows(generator(0, "noise", 7), rows, rank)
        for shape, drawn in zip(shapes, whole, strict=True):
            assert torch.equal(own(shape), drawn[:, rank])


def test_only_own_rows_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **named: drawn.append(shape[0]) or randn(*shape, **named))
    OwnRows(generator(0, "noise"), (2, 8, 16), 5)((4, 32, 32))
    assert drawn == [16, 16]
