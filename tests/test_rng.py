import numpy as np
import torch

from sfumato.rng import SampleNoise, derive, generator, seeded


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
