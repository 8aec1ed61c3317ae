"""`sfumato fit` end to end on tiny networks: trained, killed in both stages, resumed, refused, and its page."""

import html
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Command
from data.make_images import metadata, save
from fit.synthetic import SERVER, machine
from runs import assert_same_tensors, saved
from sfumato.cli import fit_plan, main
from sfumato.data.containers import storage
from sfumato.errors import UserError
from sfumato.fit.facts import MachineFacts, Pace
from sfumato.fit.folder import check_same, digest_of, store, stored_fit
from sfumato.fit.measure import StepTimer, first_operations, second_operations
from sfumato.fit.phases import Phases
from sfumato.fit.plan import FitPlan
from sfumato.report.fit_result import KernelScore
from sfumato.report.format import duration
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState

TINY = [
    "train.steps=4",
    "train.preview_every=9",
    "train.batch=4",
    "train.save_every=2",
    "train.workers=0",
    "train.precision=float32",
    "model.channels=8",
    "model.norm_groups=2",
    "model.channel_multipliers=[1,1,1]",
    "denoiser.channels=32",
    "denoiser.norm_groups=4",
    "denoiser.channel_multipliers=[1]",
    "denoiser.attention_factors=[]",
]
TEXT = ["conditioner.dim=16", "conditioner.head_dim=4"]


def first(self: StepTimer, plan: FitPlan) -> Pace:
    return Pace(first_operations(plan) / SERVER, first_operations(plan))


def second(self: StepTimer, plan: FitPlan) -> Pace:
    return Pace(second_operations(plan) / SERVER, second_operations(plan))


def facts(workers: object, read_seconds: float) -> MachineFacts:
    return machine(SERVER)


@pytest.fixture(scope="module", autouse=True)
def _machine_is_synthetic() -> Iterator[None]:
    """No test may depend on how fast its machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepTimer, "first", first)
        patch.setattr(StepTimer, "second", second)
        patch.setattr(fit_plan, "machine_facts", facts)
        patch.setattr("sfumato.fit.evaluate.kernel_score", lambda *images: KernelScore(0.25, 0.01, 8, 2, "features"))
        patch.setattr("sfumato.fit.plan.SAMPLES", (8,))
        patch.setattr("sfumato.fit.evaluate.ROWS", 2)
        patch.setattr("sfumato.fit.evaluate.DEFAULT_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with captions."""
    root = tmp_path_factory.mktemp("captioned")
    names = [f"{i}.png" for i in range(12)]
    save(root, names, 32, 32)
    metadata(
        root, [{"file_name": name, "text": f"{'red' if i % 2 else 'green'} apple {i}"} for i, name in enumerate(names)]
    )
    return root


def run_command(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def fit(data: Path, out: Path, *further: str) -> list[object]:
    """The command with the tiny settings, of which `further` ones replace those of the same name."""
    replaced = {setting.partition("=")[0] for setting in further}
    tiny = [setting for setting in TINY if setting.partition("=")[0] not in replaced]
    return ["fit", data, "--minutes", "5", "--out", out, *tiny, *further]


@pytest.fixture(scope="module")
def finished(captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit that was not disturbed."""
    out = tmp_path_factory.mktemp("fit") / "out"
    run_command([str(word) for word in fit(captioned, out, *TEXT)])
    return out


def test_a_fit_ends_in_a_page_with_samples_beside_captions(finished: Path) -> None:
    numbers = json.loads((finished / "report.json").read_text())
    page = (finished / "report.html").read_text()
    assert "What the latent means for stage 2" in page
    assert numbers["latent"][0]["name"] == "VIV"
    assert numbers["latent"][0]["says"] in page
    for one in numbers["latent"]:
        place = f" ({one['position']})" if one["position"] else ""
        assert f"<td>{one['value']:.3g}{place}</td>" in page
    assert '<p class="narrow">guidance 3</p>' in page
    assert numbers["autoencoder"]["steps"] == numbers["diffusion"]["steps"] == 4
    assert numbers["conditioner"] == "text"
    assert not numbers["on_training"]
    assert 0 <= numbers["memorised"]["share"] <= 1
    assert numbers["memorised"]["training"] == 2 * 10  # mirrored
    assert numbers["agreement"]["share"] >= 0
    assert "apple" in page
    assert "training images: 0.010" in page
    assert "kernel distance between 8 samples and 2 real images is 0.250" in page
    assert f"sfumato sample {finished}/diffusion" in page
    assert all(sentence.split(".")[0] in page for sentence in numbers["learnt"][:1])
    assert page.count("<polyline") >= 2


def test_the_plan_of_the_page_is_what_was_trained(finished: Path, captioned: Path, command: Command) -> None:
    numbers = json.loads((finished / "report.json").read_text())
    plan = "\n".join(numbers["plan"])
    assert plan.count("4 steps of 4: 16 images") == 2
    assert f"in all       {duration(numbers['seconds'])} of 5 min 00 s" in plan
    again = command(*fit(captioned, finished, *TEXT))
    assert plan in again.out


def test_a_resumed_fit_shows_the_steps_that_stage_2_was_given(
    captioned: Path, finished: Path, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("report.*"))
    (tmp_path / "out" / "steps.json").write_text('{"diffusion": 3}')
    shown = command(*fit(captioned, tmp_path / "out", *TEXT), "--dry-run")
    assert shown.code == 0, shown.err
    assert "3 steps of 4: 12 images" in shown.out
    assert "Stage 2 sees 12 latents" in shown.out


def test_the_commands_of_the_page_can_all_be_typed(finished: Path) -> None:
    page = html.unescape((finished / "report.html").read_text().split("Commands to continue")[1])
    lines = [shlex.split(line) for line in page.splitlines() if line.startswith("sfumato ")]
    assert [line[1] for line in lines] == ["sample", "train", "fit", "evaluate"]
    outs = [line[line.index("--out") + 1] for line in lines]
    assert len(set(outs)) == len(outs), "none finds its folder in use"
    assert not any(Path(out).exists() for out in outs)


def killed_after_a_save(run: str) -> Callable[[RunFolder, TrainState], None]:
    save_state = RunFolder.save

    def save(self: RunFolder, state: TrainState) -> None:
        save_state(self, state)
        if self.path.name == run:
            os.kill(os.getpid(), signal.SIGKILL)

    return save


def test_a_fit_killed_in_both_stages_goes_on_and_ends_with_the_same_weights(
    captioned: Path, finished: Path, tmp_path: Path
) -> None:
    words = [str(word) for word in fit(captioned, tmp_path / "out", *TEXT)]
    for run in ("autoencoder", "diffusion"):
        child = os.fork()
        if child == 0:
            RunFolder.save = killed_after_a_save(run)  # type: ignore[method-assign]
            try:
                main(words)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert not (tmp_path / "out" / "report.json").exists()
        assert [path.name for path in (tmp_path / "out" / run / "states").iterdir()] == ["step-00000002.safetensors"]
    run_command(words)
    for stage in ("autoencoder", "diffusion"):
        (tensors, numbers), (others, other_numbers) = saved(tmp_path / "out" / stage), saved(finished / stage)
        assert_same_tensors(tensors, others)
        assert numbers["step"] == other_numbers["step"] == 4


def test_a_fit_of_shards_ends_in_a_page_and_goes_on(
    captioned: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("shard", captioned, "--out", tmp_path / "shards", "--per-shard", 5).code == 0
    monkeypatch.setattr(storage, "is_settled", lambda path: True)  # no index is kept of a file that has just changed
    short = ["train.steps=1", "train.save_every=1"]
    out = tmp_path / "out"
    run_command([str(word) for word in fit(tmp_path / "shards", out, *TEXT, *short)])
    numbers = json.loads((out / "report.json").read_text())
    assert (numbers["images"], numbers["conditioner"]) == (12, "text")
    assert len(list((out / "cache" / "indices").iterdir())) == 3, "each shard is read through once"
    again = command(*fit(tmp_path / "shards", out, *TEXT, *short))
    assert (again.code, "already finished" in again.out) == (0, True), again.err
    next((tmp_path / "shards").glob("*.tar")).unlink()
    fewer = command(*fit(tmp_path / "shards", out, *TEXT, *short))
    assert (fewer.code, "have changed since the fit" in fewer.err) == (2, True)


def test_what_fit_does_not_read_has_a_way_out(captioned: Path, command: Command) -> None:
    address = command("fit", "https://host/{000..011}.tar", "--dry-run")
    assert (address.code, "is a URL: download it" in address.err) == (2, True), address.err
    buckets = command("fit", captioned, "--dry-run", "data.buckets={step: 8}")
    assert (buckets.code, "write the plan with --plan" in buckets.err) == (2, True)


def test_a_second_call_says_that_it_is_finished_and_where_the_page_is(
    captioned: Path, finished: Path, command: Command
) -> None:
    before = (finished / "report.html").stat().st_mtime_ns
    done = command(*fit(captioned, finished, *TEXT))
    assert done.code == 0, done.err
    assert f"already finished: {finished / 'report.html'}" in done.out
    assert (finished / "report.html").stat().st_mtime_ns == before
    without_minutes = command("fit", captioned, "--out", finished, *TINY, *TEXT)
    assert without_minutes.code == 0


def test_another_plan_or_changed_data_is_refused_with_a_way_out(
    captioned: Path, finished: Path, command: Command, tmp_path: Path
) -> None:
    other_time = command("fit", captioned, "--minutes", "7", "--out", finished, *TINY, *TEXT)
    assert other_time.code == 2
    assert "holds a fit in 5 minutes, not 7: omit --minutes to resume it" in other_time.err
    other_settings = command(*fit(captioned, finished))
    assert other_settings.code == 2
    assert "give the same to resume it, or another --out" in other_settings.err
    save(tmp_path, ["1.png", "2.png"])
    other_data = command(*fit(tmp_path, finished, *TEXT))
    assert (other_data.code, "not of" in other_data.err) == (2, True)
    save(captioned, ["more/further.png"])
    try:
        changed = command(*fit(captioned, finished, *TEXT))
    finally:
        (captioned / "more" / "further.png").unlink()
        (captioned / "more").rmdir()
    assert changed.code == 2
    assert "have changed since the fit" in changed.err
    assert len(changed.err.strip().splitlines()) == 1


def test_the_images_may_have_moved(captioned: Path, finished: Path, command: Command, tmp_path: Path) -> None:
    shutil.copytree(captioned, tmp_path / "moved")
    done = command(*fit(tmp_path / "moved", finished, *TEXT))
    assert (done.code, "already finished" in done.out) == (0, True), done.err


def test_a_fit_inside_its_images_goes_on(finished: Path, tmp_path: Path) -> None:
    known = stored_fit(finished)
    assert known is not None
    save(tmp_path, ["1.png", "2.png"])
    inside = tmp_path / "fit"
    store(inside, replace(known, data=str(tmp_path), digest=digest_of(tmp_path)))
    check_same(inside, replace(known, digest=digest_of(tmp_path, inside)), tmp_path, None, known.settings)
    there = stored_fit(inside)
    assert there is not None
    check_same(inside, there, tmp_path, None, known.settings)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', '{"a": NaN}', '{"a": -1}', '{"a": 1, "a": 2}', "[" * 10_000])
def test_damaged_times_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "phases.json").write_text(text)
    with pytest.raises(UserError, match=r"phases\.json"):
        Phases(tmp_path / "phases.json", 1, print)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(captioned: Path, command: Command, tmp_path: Path) -> None:
    done = command("fit", captioned, "--dry-run", "--hours", "1", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "condition    captions" in done.out
    assert "10 training images are few" in done.out
    assert not (tmp_path / "out").exists()


def test_a_plan_is_written_as_the_two_configurations(captioned: Path, command: Command, tmp_path: Path) -> None:
    done = command("fit", captioned, "--plan", tmp_path / "plan.yaml", *TINY, *TEXT)
    assert done.code == 0, done.err
    first = tmp_path / "plan-autoencoder.yaml"
    assert f"sfumato train autoencoder {first} --out runs/autoencoder" in done.out
    trained = command("train", "autoencoder", first, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    again = command("fit", captioned, "--plan", tmp_path / "plan.yaml")
    assert (again.code, "exists: give another file" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--minutes", "0.1", "--dry-run"], "--minutes is 0.1: give a number from 0.5 to 100000"),
        (["--minutes", "nan", "--dry-run"], "--minutes is nan"),
        (["--minutes", "5", "--hours", "1", "--dry-run"], "--minutes and --hours are both given"),
        ([], "--out is missing: name the folder of the result, or give --dry-run"),
        (["--dry-run", "data.size=[32,64]"], "trains on squares"),
        (["--dry-run", "trian.steps=4"], "begins with none of"),
        (["--dry-run", "train.stpes=4"], "did you mean 'steps'"),
    ],
)
def test_bad_input_is_one_sentence(captioned: Path, command: Command, further: list[str], message: str) -> None:
    done = command("fit", captioned, *further)
    assert done.code == 2
    assert message in done.err
    assert done.err.strip().splitlines()[-1].startswith("sfumato: ")


def test_folders_without_images_and_used_outputs_are_refused(captioned: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no images" in command("fit", tmp_path / "empty", "--dry-run").err
    assert "does not exist" in command("fit", tmp_path / "absent", "--dry-run").err
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    used = command("fit", captioned, "--out", tmp_path / "used")
    assert used.code == 2
    assert "is in use, it holds 'letter.txt': give a new folder" in used.err


def test_three_images_are_measured_on_training_images(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "three", [f"{i}.png" for i in range(3)], 32, 32)
    done = command(*fit(tmp_path / "three", tmp_path / "out", "train.batch=2", "train.steps=2"))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "report.json").read_text())["on_training"]
    assert "Measured on training images" in (tmp_path / "out" / "report.html").read_text()


def test_classes_are_rows_of_the_page(command: Command, tmp_path: Path) -> None:
    save(tmp_path / "classes", [f"{'cats' if i % 2 else 'dogs'}/{i}.png" for i in range(10)], 32, 32)
    done = command(*fit(tmp_path / "classes", tmp_path / "out", "train.steps=2"))
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<blockquote>cats</blockquote>" in page
    assert "--label" in page
