"""The head that predicts the mean clean latent from the condition alone."""

from pathlib import Path

import pytest
import torch

from runs import logged, second_run, train_second
from sfumato.conditioning.condition import Condition
from sfumato.conditioning.mean import SIDE, ConditionMean, mean_loss
from sfumato.errors import UserError


def test_the_mean_follows_the_real_tokens_alone() -> None:
    torch.manual_seed(0)
    head = ConditionMean(16, 3)
    tokens, mask = torch.randn(2, 5, 16), torch.tensor([[True] * 3 + [False] * 2] * 2)
    mean = head(Condition(tokens=tokens, mask=mask))
    assert mean.shape == (2, 3, SIDE, SIDE)
    padding = tokens.clone()
    padding[:, 3:] = 7.0
    assert torch.equal(head(Condition(tokens=padding, mask=mask)), mean)
    assert not torch.allclose(head(Condition(tokens=tokens.flip(0), mask=mask)), mean, atol=1e-3)
    assert mean[0].flatten(1).std(1).min() > 0, "positions differ"
    with pytest.raises(ValueError, match="no tokens"):
        head(Condition(vector=torch.zeros(2, 16)))


def test_the_loss_is_that_of_the_averaged_latent() -> None:
    x0 = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    coarse = x0.view(2, 1, 4, 2, 4, 2).mean((3, 5))
    assert torch.equal(mean_loss(coarse, x0), torch.zeros(2))
    torch.testing.assert_close(
        mean_loss(coarse + torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), x0), torch.tensor([1.0, 9])
    )


def test_training_logs_it_and_a_condition_without_tokens_is_refused(tmp_path: Path) -> None:
    train_second(tmp_path / "run", second_run("objective.condition_mean=1", "train.steps=2"), tmp_path / "cache")
    assert all(line["loss_condition_mean"] > 0 for line in logged(tmp_path / "run") if "loss" in line)
    without = second_run("objective.condition_mean=1", "conditioner={kind: none}", "train.condition_dropout=0")
    with pytest.raises(UserError, match=r"conditioner\.kind none makes no tokens: set objective\.condition_mean=0"):
        train_second(tmp_path / "none", without, tmp_path / "cache")
