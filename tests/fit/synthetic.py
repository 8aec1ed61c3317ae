"""Facts of folders and machines for tests of plans: the same on every machine."""

from sfumato.fit.facts import DataFacts, MachineFacts, Pace

EMOJI = DataFacts(14_519, 128, captioned=14_519, captions=3_730, caption_tokens=21, sided="left arrow")
PHOTOS = DataFacts(40, 700)
LAPTOP, SERVER, GPU = 2e10, 4e11, 1.2e13
"""Operations a second of trainings."""


def machine(rate: float = LAPTOP, memory: float = 8, cores: int = 2, features: bool = True) -> MachineFacts:
    """A machine that trains every network at one rate, with this many GiB of free memory."""
    known = {"reference": Pace(1e9 / rate, 1e9)}
    return MachineFacts(
        name="a machine",
        device="cuda" if rate >= GPU else "cpu",
        cores=cores,
        memory=int(memory * 2**30),
        first=known,
        second=known,
        features=features,
    )
