"""A run's folder: its configuration, its saved states, resuming, and stopping on a signal."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import BaseModel

from sfumato import checkpoint
from sfumato.config import parse_mapping, to_yaml
from sfumato.errors import UserError
from sfumato.training.state import TrainState

STATES_KEPT = 2
MAY_CHANGE = (
    "train.steps",
    "train.save_every",
    "train.preview_every",
    "train.log_every",
    "train.workers",
    "data.workers",
)


class RunFolder:
    """`config.yaml`, `states/step-*.safetensors`, `log.jsonl`, `previews/*.png` and `model/` of one run."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {str(path)!r} is a file; give the folder of a new or an interrupted run")
        self.path = path
        self.states = path / "states"
        self.previews = path / "previews"
        self.model = path / "model"

    def claim(self, config: BaseModel) -> None:
        """Makes the folder, or checks that the run in it has this configuration, and writes `config.yaml`.

        Raises UserError naming the first setting that differs, unless it may change between sessions of one run.
        """
        file = self.path / "config.yaml"
        if file.exists():
            before = _flat(parse_mapping(file.read_text(encoding="utf-8"), str(file)))
            now = _flat(config.model_dump(mode="json"))
            for key in sorted(set(before) | set(now)):
                if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE):
                    raise UserError(
                        f"--out {str(self.path)!r} holds a run with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                        "give the same configuration to resume it, or another folder"
                    )
        self.previews.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(file, to_yaml(config))

    def describe(self, say: Callable[[str], None]) -> None:
        """Says whether a run begins here or goes on."""
        steps = checkpoint.saved_steps(self.states)
        say(f"going on after step {steps[-1][0]} of the run in {self.path}" if steps else f"a new run in {self.path}")

    def save(self, state: TrainState) -> None:
        """Writes the state atomically and drops older ones."""
        checkpoint.save_tensors(checkpoint.step_path(self.states, state.step), state.tensors(), state.numbers())
        checkpoint.prune(self.states, STATES_KEPT)

    def resume(self, state: TrainState) -> bool:
        """Loads the newest whole state into `state`; False where there is none."""
        path = checkpoint.newest(self.states, print)
        if path is None:
            return False
        state.load(*checkpoint.load_tensors(path))
        return True


class Interrupt:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once."""

    def __init__(self) -> None:
        self.wanted = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Within the block the first signal only asks the loop to save and stop."""
    interrupt = Interrupt()

    def ask(number: int, frame: FrameType | None) -> None:
        if interrupt.wanted:
            raise KeyboardInterrupt
        interrupt.wanted = True

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, ask)
    except ValueError:  # not the main thread: signals stay with whoever has it
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
