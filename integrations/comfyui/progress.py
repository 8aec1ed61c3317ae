"""ComfyUI's progress bar and its cancel button, during sampling."""

from collections.abc import Callable, Mapping
from typing import Any

from sfumato.pipeline.request import DEFAULT_STEPS


def watching(options: Mapping[str, Any]) -> Callable[[Any], None] | None:
    """Called after every step: moves the bar, and stops where the user cancelled. None outside ComfyUI."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = ProgressBar(options.get("steps") or DEFAULT_STEPS)

    def after(step: Any) -> None:
        throw_exception_if_processing_interrupted()
        bar.update(1)

    return after
