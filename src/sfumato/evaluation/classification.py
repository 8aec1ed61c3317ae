"""Classification accuracy score (Ravuri & Vinyals 2019): accuracy on real images after training on samples.

Here it is a linear classifier on the features of a named network, not a ResNet-50 on pixels, which is much cheaper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    weight_decay: float = 1e-3,
    iterations: int = 100,
) -> float:
    """Accuracy on the test rows of a logistic regression fitted to the others, in [0, 1].

    Features are standardised by the statistics of the fitted rows. The fit is a convex problem solved by L-BFGS from
    zero, so it is deterministic.

    Args:
        features, test_features: (N, D), (M, D).
        labels, test_labels: (N,), (M,) integers below `classes`.
        classes: number of classes.
        weight_decay: factor of the weights' squared norm.
        iterations: most iterations of L-BFGS.

    Raises:
        ValueError: there are no rows, or the labels do not fit.
    """
    if not len(features) or not len(test_features) or len(features) != len(labels):
        raise ValueError(f"{len(features)} features, {len(labels)} labels and {len(test_features)} to test on")
    if int(labels.max()) >= classes or int(test_labels.max()) >= classes:
        raise ValueError(f"a label is not below the number of classes, {classes}")
    x = features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-6)
    x = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    with torch.no_grad():
        predicted = F.linear((test_features.double() - mean) / std, weight, bias).argmax(dim=1)
    return (predicted == test_labels).double().mean().item()
