"""Samples of several processes: each makes whole batches, and all of them read what one process would."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.cards.shared import SharedSubject
from sfumato.cards.subject import ModelSubject, SampleConditions


class Numbered(ModelSubject):
    """Image i is filled with i; notes which batches were asked for."""

    def __init__(self, count: int) -> None:
        nothing: Any = None
        super().__init__(nothing, "", count, SampleConditions(label=list(range(count))), 0, {"size": (2, 2)})
        object.__setattr__(self, "made", [])

    def images(self, numbers: Sequence[int]) -> Tensor:
        made: list[Sequence[int]] = self.made  # type: ignore[attr-defined]
        made.append(numbers)
        return torch.tensor(list(numbers), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@pytest.mark.parametrize("count", [1, 6, 7, 12, 13])
def test_processes_read_the_images_of_one_in_order_and_make_each_batch_once(count: int) -> None:
    world, batch = 3, 2
    sent: list[list[Tensor]] = []
    for rank in range(world):  # what each puts into the exchanges
        mine: list[Tensor] = []

        def noted(part: Tensor, mine: list[Tensor] = mine) -> Tensor:
            mine.append(part.clone())
            return part.repeat(world, 1, 1, 1)

        list(SharedSubject(Numbered(count), rank, world, noted).batches(batch))
        sent.append(mine)
    assert len({len(mine) for mine in sent}) == 1, "all take part in each exchange"

    turns = iter(zip(*sent, strict=True))
    own = Numbered(count)
    shared = list(SharedSubject(own, 1, world, lambda part: torch.cat(next(turns))).batches(batch))
    alone = list(Numbered(count).batches(batch))
    assert [each.label for each in shared] == [each.label for each in alone]
    assert all(torch.equal(one.images, other.images) for one, other in zip(shared, alone, strict=True))
    assert own.made == [range(start, min(start + 2, count)) for start in range(2, count, 6)]  # type: ignore[attr-defined]
