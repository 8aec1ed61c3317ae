"""Which objective learns fastest: the same small denoiser on the same cached latents, trained with each, and scored.

    python -m benchmarks.objectives --autoencoder runs/ae --out ablation --minutes 10 --seeds 3

    python -m benchmarks.objectives --autoencoder runs/ae --config zoo:emoji/text --data images --out x --steps 900

Stopped at any moment, the same command goes on where it was. Every variant has the same steps (`--steps`) or the same
time (`--minutes`, from its measured rate). Averages along the training are scored, by the toy world's reader or, on
other images, by the kernel distance to real ones, so that the table can say how long each variant takes to reach what
the paper's recipe reaches at its end.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.ablation import Comparison, Raw, add_arguments, compare, recipe, run_config, slug_of, table
from sfumato.checkpoint import write_text
from sfumato.cli.training_runs import run_diffusion
from sfumato.config import apply_overrides
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.training.log import read_lines
from sfumato.training.workers import use_all_cores

PAPER = "eps"
"""The paper's recipe, which the others are measured against: eps, uniform weights, its schedule."""
CALIBRATION = 24
"""Steps that are timed before a run of so many minutes; the first third is warming up."""

UNIFORM, LOGIT_NORMAL = {"kind": "uniform"}, {"kind": "logit-normal"}
HISTORY = {"kind": "loss-history", "base": UNIFORM}
LINEAR, COSINE, SIGMOID, FLOW = ({"kind": kind} for kind in ("scaled-linear", "cosine", "sigmoid", "flow"))
ZERO_TERMINAL = {"kind": "scaled-linear", "zero_terminal_snr": True}

Settings = tuple[dict[str, Any], dict[str, Any]]


def _variant(prediction: str, schedule: dict[str, Any], weighting: str = "uniform", **more: Any) -> Settings:
    """(objective, schedule) as a configuration spells them."""
    return {"prediction": prediction, "weighting": {"kind": weighting}, **more}, schedule


VARIANTS: dict[str, Settings] = {
    PAPER: _variant("eps", LINEAR),
    "eps, min-snr": _variant("eps", LINEAR, "min-snr"),
    "eps, p2": _variant("eps", LINEAR, "p2"),
    "eps, learned": _variant("eps", LINEAR, "learned"),
    "eps, loss history": _variant("eps", LINEAR, times={"kind": "loss-history"}),
    "x0, soft-min-snr": _variant("x0", LINEAR, "soft-min-snr", times=UNIFORM),
    "v": _variant("v", LINEAR, times=UNIFORM),
    "v, stratified": _variant("v", LINEAR, times=UNIFORM, stratified=True),
    "v, logit-normal": _variant("v", LINEAR, times=LOGIT_NORMAL),
    "v, loss history": _variant("v", LINEAR, times=HISTORY),
    "v, min-snr": _variant("v", LINEAR, "min-snr", times=UNIFORM),
    "v, soft-min-snr": _variant("v", LINEAR, "soft-min-snr", times=UNIFORM),
    "v, learned": _variant("v", LINEAR, "learned", times=UNIFORM),
    "v, l1": _variant("v", LINEAR, times=UNIFORM, loss="l1"),
    "v, cosine": _variant("v", COSINE, times=UNIFORM),
    "v, sigmoid": _variant("v", SIGMOID, times=UNIFORM),
    "v, zero terminal SNR": _variant("v", ZERO_TERMINAL, times=UNIFORM),
    "flow": _variant("flow", FLOW, times=UNIFORM),
    "flow, logit-normal": _variant("flow", FLOW, times=LOGIT_NORMAL),
    "flow, logit-normal, learned": _variant("flow", FLOW, "learned", times=LOGIT_NORMAL),
    "flow, loss history": _variant("flow", FLOW, times=HISTORY),
}


def _changed(raw: Raw, name: str) -> Raw:
    objective, schedule = VARIANTS[name]
    return {**raw, "objective": objective, "schedule": schedule}


COMPARISON = Comparison("objective", PAPER, "time to the paper's", _changed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and scores what is not done yet, and writes OUT/results.json and OUT/results.md after each run."""
    options = _parser().parse_args(arguments)
    use_all_cores()
    first = load(options.autoencoder)
    raw = recipe(options, first)
    chosen = [name for name in VARIANTS if name == PAPER or any(part in name for part in options.only.split(";"))]
    records = compare(
        COMPARISON, options, first, raw, chosen, lambda name: options.steps or _steps_for(options, raw, name, first)
    )
    if records is None:
        sys.exit(130)
    print(table(COMPARISON, records))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--config", default="zoo:toy/text", help="the denoiser and all else that is shared")
    parser.add_argument("--only", default="", help="variants that contain one of these, parted by ; beside the paper's")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="of every run")
    length.add_argument("--minutes", type=float, help="of training, of every run")
    return parser


def _steps_for(options: argparse.Namespace, raw: Raw, name: str, first: LatentDiffusion) -> int:
    """How many steps of a variant fit into the minutes: measured once, and remembered."""
    file = options.out / "steps.json"
    known: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    key = f"{name}, {options.minutes:g} minutes"
    if key not in known:
        run = options.out / "calibration" / slug_of(name)
        raw = apply_overrides(raw, ["train.log_every=1"])
        run_diffusion(run_config(COMPARISON, raw, name, 0, CALIBRATION, CALIBRATION), first, run, options.out / "cache")
        seconds = {line["step"]: line["seconds"] for line in read_lines(run / "log.jsonl") if "seconds" in line}
        warm = CALIBRATION // 3
        rate = (seconds[CALIBRATION] - seconds[warm]) / (CALIBRATION - warm)
        known[key] = max(options.points, round(options.minutes * 60 / rate))
        write_text(file, json.dumps(known, indent=1) + "\n")
    return known[key]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"objectives: {error}", file=sys.stderr)
        sys.exit(2)
