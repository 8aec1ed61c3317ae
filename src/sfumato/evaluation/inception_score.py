"""The Inception Score (Salimans et al. 2016, eq. 4): high if each image is of one class and all together of many."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Mean over the splits, and their standard deviation."""

    mean: float
    std: float


class InceptionScore:
    """exp of the mean divergence KL(p(y|x) ‖ p(y)), per split, of logits that arrive in batches; float64.

    Only sums are kept. Rows are divided into `splits` parts in the order of their arrival, as in the original.

    Args:
        total: number of rows to come.
        splits: number of parts; fewer if there are fewer rows.
    """

    def __init__(self, total: int, splits: int = 10) -> None:
        """Raises ValueError if either is below 1."""
        if total < 1 or splits < 1:
            raise ValueError(f"an Inception Score needs rows and splits: total {total}, splits {splits}")
        splits = min(splits, total)
        self._ends = [total * (i + 1) // splits for i in range(splits)]
        self._counts = [0] * splits
        self._entropy = [0.0] * splits
        self._sums: list[Tensor | None] = [None] * splits
        self._seen = 0

    def update(self, logits: Tensor) -> None:
        """Adds rows (B, K). Raises ValueError beyond the total."""
        if self._seen + len(logits) > self._ends[-1]:
            raise ValueError(f"{self._seen + len(logits)} rows came, {self._ends[-1]} were announced")
        log_p = logits.detach().cpu().double().log_softmax(dim=1)
        at = 0
        while at < len(log_p):
            part = next(i for i, end in enumerate(self._ends) if self._seen < end)
            rows = log_p[at : at + self._ends[part] - self._seen]
            p = rows.exp()
            known = self._sums[part]
            self._sums[part] = p.sum(dim=0) if known is None else known + p.sum(dim=0)
            self._entropy[part] += (p * rows).sum().item()
            self._counts[part] += len(rows)
            self._seen += len(rows)
            at += len(rows)

    def finish(self) -> Score:
        """The score. Raises ValueError if rows are missing."""
        if self._seen != self._ends[-1]:
            raise ValueError(f"{self._seen} rows came, {self._ends[-1]} were announced")
        scores = []
        for count, entropy, sums in zip(self._counts, self._entropy, self._sums, strict=True):
            assert sums is not None
            marginal = sums / count
            cross = (marginal * marginal.clamp_min(torch.finfo(torch.float64).tiny).log()).sum()
            scores.append(torch.exp(entropy / count - cross))
        values = torch.stack(scores)
        return Score(values.mean().item(), values.std(correction=0).item())
