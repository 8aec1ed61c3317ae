"""The curves of a demo's page."""

from typing import Any

from sfumato.report.curves import training_curves


def lines(*losses: float) -> list[dict[str, Any]]:
    return [{"step": 10 * i, "loss": loss, "loss_smoothed": loss} for i, loss in enumerate(losses, 1)]


def test_a_loss_with_learned_weights_is_shown_below_zero_too() -> None:
    positive = "".join(map("".join, training_curves([], lines(1.0, 0.5, 0.25))))
    assert "Stage 2: loss, logarithmic" in positive
    falling = "".join(map("".join, training_curves([], lines(1.0, 0.2, -0.6))))
    assert "falls below zero" in falling
    assert "Stage 2: loss, logarithmic" not in falling
    assert falling.count("<polyline") + falling.count("<path") >= 1
    assert "−0.5" in falling or "-0.5" in falling, "an axis that reaches below zero"
