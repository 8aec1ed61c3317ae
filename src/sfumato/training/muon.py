"""Muon: momentum whose matrices are made orthogonal before they are added (Jordan et al. 2024; Liu et al. 2025).

The gradient of a layer has few large singular values, and Adam's step follows them. Setting all of them to one moves
every direction of the layer equally; small runs reach the same loss in half the steps or fewer.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeGuard, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from sfumato.engine.graphs import Recordings, recordable
from sfumato.engine.precision import Precision, dtype_of
from sfumato.training.parts import in_parts, local, whole_like
from sfumato.training.shares import Sharing, exchanged, owners

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of an update's entries, in learning rates: about that of AdamW, so that one rate suits both."""
SMALLEST = 16
"""Fewest channels on either side of a hidden layer; images and latents have fewer."""
_QUINTIC = (3.4445, -4.7750, 2.0315)  # a + b s² + c s⁴: from 0.003 and more to 0.4 … 1.2 in four rounds
ROUNDS = 4
SMALLEST_IN_BFLOAT16 = 128
"""Fewest rows and columns that are multiplied in bfloat16: smaller ones take longer than in float32, or as long."""
SHAPES = 64
"""Most shapes of weights whose iterations are recorded on a GPU."""


def is_hidden(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv1d | nn.Conv2d]:
    """Whether Muon updates the layer's weight: matrices and kernels between features, not input or output layers."""
    if isinstance(layer, nn.Linear):
        return min(layer.in_features, layer.out_features) >= SMALLEST
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return min(layer.in_channels, layer.out_channels) >= SMALLEST and layer.groups == 1
    return False


class Muon(torch.optim.Optimizer):
    """Muon for `hidden` weights, AdamW in its fused form for `others`.

    Args:
        hidden: weights of Linear and Conv layers; a kernel (out, in, kh, kw) counts as a matrix (out, kh·kw·in).
        others: groups as AdamW's, each a dict of `params` and its own options.
        lr: the rate of all.
        betas: of AdamW.
        weight_decay: of the hidden weights, decoupled.
        precision: of the matrix products of Newton and Schulz's iteration; weights and momentum keep their own.
        sharing: the processes that share the iterations out, whose gradients are equal; None: this one does all.
    """

    def __init__(
        self,
        hidden: Iterable[Tensor],
        others: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        precision: Precision = "float32",
        sharing: Sharing | None = None,
    ) -> None:
        groups = [
            {"params": list(hidden), "weight_decay": weight_decay, "orthogonal": True},
            *({**other, "orthogonal": False} for other in others),
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "betas": betas})
        self._recordings = Recordings(most=SHAPES)
        self._precision: Precision = precision
        self._sharing = sharing

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved and group["orthogonal"]:
                self._move_hidden(moved, group["lr"], group["weight_decay"])
            elif moved:
                self._move_others(moved, group)
        return loss

    def _move_hidden(self, weights: list[Tensor], lr: float, weight_decay: float) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in weights]
        if any(map(in_parts, weights)):
            self._move_parts(weights, gradients, momenta, lr, weight_decay)
            return
        torch._foreach_mul_(momenta, MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        directions = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)  # Nesterov's: where the momentum will be
        if weight_decay:
            torch._foreach_mul_(weights, 1 - lr * weight_decay)
        matrices = [_as_matrix(direction) for direction in directions]
        updates = self._alone(matrices) if self._sharing is None else self._shared(matrices, self._sharing)
        for shape in dict.fromkeys(matrix.shape for matrix in matrices):
            alike = [number for number, matrix in enumerate(matrices) if matrix.shape == shape]
            kernels = [_as_kernel(updates[number], weights[number]) for number in alike]
            size = -lr * RMS * math.sqrt(max(shape))
            torch._foreach_add_([weights[number] for number in alike], kernels, alpha=size)

    def _move_parts(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        momenta: Sequence[Tensor],
        lr: float,
        weight_decay: float,
    ) -> None:
        """The same where each process has some rows of a weight: one direction after the other is made whole, in every
        process, and each adds its rows of the update."""
        from sfumato.training.sharding import parted

        for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
            own = local(momentum).mul_(MOMENTUM).add_(local(gradient))
            whole = whole_like(weight, local(gradient).add(own, alpha=MOMENTUM))
            matrix = _as_matrix(whole)
            update = _as_kernel(self._orthogonal(matrix[None])[0], whole)
            rows = local(weight)
            if weight_decay:
                rows.mul_(1 - lr * weight_decay)
            rows.add_(local(parted(update, weight)), alpha=-lr * RMS * math.sqrt(max(matrix.shape)))

    def _alone(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        """The orthogonal update of each matrix; those of one shape are computed together."""
        updates = list(matrices)
        for shape in dict.fromkeys(matrix.shape for matrix in matrices):
            alike = [number for number, matrix in enumerate(matrices) if matrix.shape == shape]
            made = self._orthogonal(torch.stack([matrices[number] for number in alike]))
            for number, update in zip(alike, made, strict=True):
                updates[number] = update
        return updates

    def _shared(self, matrices: Sequence[Tensor], sharing: Sharing) -> list[Tensor]:
        """The same where each process computes a part: momenta are equal in all, so the updates are, too."""
        shapes = [matrix.shape for matrix in matrices]
        owner = owners([shape.numel() * min(shape) for shape in shapes], sharing.world)
        own = self._alone([matrix for matrix, of in zip(matrices, owner, strict=True) if of == sharing.rank])
        dtype = dtype_of(self._precision, matrices[0].device)
        made = exchanged(sharing, owner, shapes, own, dtype)
        return [update.to(matrix.dtype) for update, matrix in zip(made, matrices, strict=True)]

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """On a GPU the iterations are recorded: launched one by one they take as long as the rest of a small step."""
        if matrices.dtype == torch.float32 and min(matrices.shape[1:]) >= SMALLEST_IN_BFLOAT16:
            dtype = dtype_of(self._precision, matrices.device)
        else:
            dtype = matrices.dtype
        iterate = partial(orthogonal, dtype=dtype)
        return self._recordings(iterate, [matrices]) if recordable([matrices]) else iterate(matrices)

    def _move_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), device=p.device), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )
        slots = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [],
            [slot["step"] for slot in slots],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def _as_matrix(weight: Tensor) -> Tensor:
    """(out, in) as it is; (out, in, kh, kw) -> (out, kh·kw·in), without a copy for channels-last memory."""
    return weight.movedim(1, -1).flatten(1)


def _as_kernel(matrix: Tensor, weight: Tensor) -> Tensor:
    """Back to the shape of `weight`, a view."""
    return matrix.view(weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 1)


def orthogonal(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """U Vᵀ of matrices (n, rows, columns) with singular value decompositions U S Vᵀ, about: singular values near one.

    Newton and Schulz's iteration X <- (a + b XXᵀ + c (XXᵀ)²) X needs no decomposition. For a wide X the iterations run
    on the small square A = XXᵀ alone, which commutes with every factor, and are applied to X once at the end: half of
    the work for a 3×3 kernel. A matrix of zeros stays zero.

    Args:
        matrices: of any floating-point type, which the result has too.
        dtype: the type to multiply in, by default that of the matrices. The iteration corrects itself: in bfloat16
            singular values come out within 0.1 of float32's (Jordan et al. 2024 iterate in bfloat16, too).
    """
    _, rows, columns = matrices.shape
    if rows > columns:
        return orthogonal(matrices.mT, dtype).mT
    norm = torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-20
    return _iterated((matrices / norm).to(dtype or matrices.dtype)).to(matrices.dtype)


def _iterated(x: Tensor) -> Tensor:
    """The rounds of the iteration for matrices (n, rows, columns) of norm one at the most, rows <= columns."""
    if x.shape[2] <= 2 * x.shape[1]:
        for _ in range(ROUNDS):
            x = _factor(x @ x.mT) @ x
        return x
    gram = x @ x.mT
    product = factor = _factor(gram)
    for _ in range(ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ x


def _factor(gram: Tensor) -> Tensor:
    """a + b A + c A² of squares A (n, m, m)."""
    a, b, c = _QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor
