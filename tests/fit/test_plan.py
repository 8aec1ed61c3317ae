"""Plans of synthetic folders on synthetic machines."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fit.synthetic import EMOJI, GPU, LAPTOP, PHOTOS, SERVER, machine
from sfumato.errors import UserError
from sfumato.fit.configs import autoencoder_run, diffusion_run, settings_by_stage, with_settings
from sfumato.fit.facts import DataFacts, MachineFacts, Pace
from sfumato.fit.folder import PLAN, Fit, store, stored_fit
from sfumato.fit.lines import plan_lines
from sfumato.fit.measure import first_operations, measured_plan, second_operations
from sfumato.fit.networks import SECOND
from sfumato.fit.plan import LEAST_STEPS, FitPlan, make_plan, sizes_for
from sfumato.fit.quality import quality
from sfumato.training.data import check_step

HOUR = 3600.0
ORDER = [network.name for network in SECOND]


def rank(plan: FitPlan) -> tuple[int, int, int]:
    return plan.size, ORDER.index(plan.second.network), plan.second.images


@pytest.mark.parametrize("data", [EMOJI, PHOTOS, DataFacts(3, 500), DataFacts(1_000_000, 300)])
@pytest.mark.parametrize("rate", [LAPTOP, SERVER, GPU])
@pytest.mark.parametrize("seconds", [300.0, HOUR, 8 * HOUR])
def test_every_plan_keeps_its_time_and_is_a_configuration(data: DataFacts, rate: float, seconds: float) -> None:
    plan = make_plan(data, machine(rate), seconds)
    assert plan.total <= 1.1 * seconds
    assert min(plan.first.steps, plan.second.steps) >= LEAST_STEPS
    assert plan.memory <= plan.machine.memory
    first, second = autoencoder_run(plan, Path("images")), diffusion_run(plan, Path("images"))
    assert first.train.steps == plan.first.steps
    assert second.train.batch * second.train.accumulate * second.train.steps == plan.second.images
    assert first.model.factor == plan.factor
    assert plan.latent_side % second.denoiser.factor == 0
    assert plan.size <= max(32, data.side * 4 // 3)
    assert make_plan(data, machine(rate), seconds) == plan


def test_hours_of_a_laptop_train_emoji_at_64_pixels_with_f_4() -> None:
    short, plan = (make_plan(EMOJI, machine(LAPTOP * 3), hours * HOUR) for hours in (1, 8))
    assert short.size == 32
    assert (plan.size, plan.factor, plan.conditioner, plan.mirrored) == (64, 4, "text", False)
    assert plan.held_out_by == "text"
    assert plan.images == EMOJI.images
    assert diffusion_run(plan, Path("x")).conditioner.model_dump()["max_tokens"] == 24


def test_more_time_and_faster_machines_give_larger_plans() -> None:
    plans = [make_plan(EMOJI, machine(rate), HOUR) for rate in (LAPTOP, SERVER, GPU)]
    assert sorted(plans, key=rank) == plans
    assert rank(plans[0]) < rank(plans[1]) < rank(plans[2])
    plans = [make_plan(EMOJI, machine(), seconds) for seconds in (300.0, HOUR, 8 * HOUR)]
    assert sorted(plans, key=rank) == plans


def test_forty_photographs_get_small_networks_mirrored_images_and_a_warning() -> None:
    plan = make_plan(PHOTOS, machine(SERVER), HOUR)
    assert plan.mirrored
    assert (plan.first.network, plan.second.network) == ("small", "small")
    assert 2 <= plan.held_out <= 8
    assert any("training images are few" in warning for warning in plan.warnings)
    assert autoencoder_run(plan, Path("x")).data.model_dump()["flip"]
    assert diffusion_run(plan, Path("x")).mirrored
    assert plan.total < 0.8 * HOUR  # a longer training only memorises
    assert any("only memorise them" in warning for warning in plan.warnings)


def test_captions_that_speak_of_sides_are_not_mirrored() -> None:
    assert not make_plan(replace(PHOTOS, sided="a cat on the left"), machine(), HOUR).mirrored


def test_few_images_are_measured_on_training_images() -> None:
    plan = make_plan(DataFacts(3, 500), machine(), 600.0)
    assert plan.held_out == 0
    assert any("measured on training images" in warning for warning in plan.warnings)
    assert plan.second.batch <= 4
    with pytest.raises(UserError, match=r"has 1 image that can be read: a model needs at least two"):
        make_plan(DataFacts(1, 500), machine(), 600.0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (DataFacts(50, 64, captioned=50, captions=40, caption_tokens=9), "text"),
        (DataFacts(50, 64, captioned=10, captions=10), "none"),
        (DataFacts(50, 64, captioned=50, captions=1), "none"),
        (DataFacts(50, 64, classes={"a": 20, "b": 30}), "class"),
        (DataFacts(50, 64, classes={"a": 50}), "none"),
        (DataFacts(50, 64, maps=True, captioned=50, captions=50), "semantic"),
        (DataFacts(50, 64, boxes=True), "layout"),
    ],
)
def test_the_conditioner_is_what_the_folder_has(data: DataFacts, kind: str) -> None:
    plan = make_plan(data, machine(), 1200.0)
    config = diffusion_run(plan, Path("x"))
    assert plan.conditioner == config.conditioner.kind == kind
    assert (config.conditions.map is not None) == (kind == "semantic")
    assert (config.conditions.boxes is not None) == (kind == "layout")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (DataFacts(50, 64, captioned=10, captions=10), "captions, which 10 of 50 images have (too few)."),
        (DataFacts(50, 64, captioned=1, captions=1), "captions, which 1 of 50 images has (all are the same)."),
        (DataFacts(50, 64, captioned=50, captions=1), "captions, which 50 of 50 images have (all are the same)."),
        (DataFacts(50, 64, captioned=50, captions=9, classes={"a": 20, "b": 30}), "2 classes, the sub-folders or"),
        (DataFacts(50, 64, captioned=50, captions=9, boxes=True), "captions, which 50 of 50 images have."),
    ],
)
def test_captions_and_classes_that_are_not_used_are_named(data: DataFacts, sentence: str) -> None:
    assert f"Not used as a condition: {sentence}" in " ".join(make_plan(data, machine(), 1200.0).reasons)


def test_what_is_used_is_not_called_unused() -> None:
    for data in (EMOJI, PHOTOS, DataFacts(50, 64, classes={"a": 20, "b": 30})):
        assert "Not used" not in " ".join(make_plan(data, machine(), 1200.0).reasons)


@pytest.mark.parametrize("seconds", [600.0, HOUR])
def test_images_that_are_not_square_are_offered_several_sizes_that_both_stages_take(seconds: float) -> None:
    plan = make_plan(replace(PHOTOS, cropped=0.37), machine(), seconds)
    (offer,) = [warning for warning in plan.warnings if "cut off 37%" in warning]
    setting = offer.split("add '")[1].split("'")[0]
    assert autoencoder_run(plan, Path("x"), [setting]).data.model_dump()["buckets"]["ratio"] == 2
    second = diffusion_run(plan, Path("x"), [setting])
    check_step(second.data, plan.factor * second.denoiser.factor, "f times the levels")
    assert not any("cut off" in warning for warning in make_plan(PHOTOS, machine(), seconds).warnings)


def test_one_class_is_said_to_be_none() -> None:
    plan = make_plan(DataFacts(500, 64, classes={"cats": 500}), machine(), 1200.0)
    assert any("in one class, 'cats'" in warning for warning in plan.warnings)


def test_of_a_million_images_as_many_are_used_as_can_be_read() -> None:
    plan = make_plan(DataFacts(20_000, 300, listed=1_000_000), machine(), HOUR)
    assert plan.images < 1_000_000
    assert any("of 1,000,000 images are used" in warning for warning in plan.warnings)
    assert autoencoder_run(plan, Path("x")).data.model_dump()["most_images"] == plan.images
    assert diffusion_run(plan, Path("x")).data.model_dump()["most_images"] == plan.images


def test_too_short_a_time_names_the_time_that_is_needed() -> None:
    with pytest.raises(UserError, match=r"30 seconds are too short.*give --minutes (\d+) or more") as error:
        make_plan(EMOJI, machine(), 30.0)
    minutes = int(str(error.value).split("--minutes ")[1].split()[0])
    assert make_plan(EMOJI, machine(), 60.0 * minutes).second.steps >= LEAST_STEPS


def test_a_plan_that_exceeds_the_memory_is_a_smaller_one_that_says_so() -> None:
    ample, tight = (make_plan(EMOJI, machine(GPU, memory), 4 * HOUR) for memory in (100, 4))
    assert tight.memory <= 4 * 2**30 < ample.memory
    assert rank(tight)[:2] <= rank(ample)[:2]
    assert any("4.0 GiB of free memory" in w for w in tight.warnings) or "memory" in " ".join(tight.reasons)
    with pytest.raises(
        UserError, match=r"needs .* GiB, and a plan takes at most 60% of the 0\.5 GiB that are free: close"
    ):
        make_plan(EMOJI, machine(memory=0.5), HOUR)


def test_tiny_images_are_not_enlarged() -> None:
    assert sizes_for(16) == [16]
    assert sizes_for(28) == [32]
    assert sizes_for(64) == [32, 64]
    assert max(sizes_for(100)) == 128
    assert make_plan(DataFacts(60_000, 28, classes={"0": 1, "1": 2}), machine(SERVER), HOUR).size == 32


def test_a_size_that_was_set_is_kept() -> None:
    plan = make_plan(EMOJI, machine(), HOUR, size=128)
    assert plan.size == 128


def test_without_the_feature_network_pixels_are_compared() -> None:
    plan = make_plan(EMOJI, machine(LAPTOP * 3, features=False), HOUR)
    assert autoencoder_run(plan, Path("x")).loss.perceptual.kind == "none"


def test_the_same_plan_is_printed_with_its_numbers() -> None:
    plan = make_plan(EMOJI, machine(LAPTOP * 3), HOUR)
    text = "\n".join(plan_lines(plan))
    assert f"{plan.second.steps:,} steps" in text
    assert plan.quality in text
    assert all(reason in text for reason in plan.reasons)


def test_lengths_that_were_set_are_those_that_the_plan_speaks_of() -> None:
    plan = make_plan(PHOTOS, machine(SERVER), HOUR)
    shorter = with_settings(plan, Path("x"), ["autoencoder.train.steps=60", "diffusion.train.steps=40"])
    assert (shorter.first.steps, shorter.second.steps) == (60, 40)
    assert f"Stage 1 sees {60 * plan.first.batch:,} images" in " ".join(shorter.reasons)
    assert "blurred" in shorter.quality
    assert "blurred" not in plan.quality
    assert with_settings(plan, Path("x"), ["train.seed=1"]) == plan


def test_minutes_that_were_set_are_those_that_the_plan_speaks_of() -> None:
    plan = make_plan(EMOJI, machine(), HOUR)
    set_to = with_settings(plan, Path("x"), ["diffusion.train.minutes=6"])
    assert set_to.second.seconds == pytest.approx(360, rel=0.01)
    assert set_to.first == plan.first
    few = with_settings(plan, Path("x"), ["diffusion.train.minutes=6", "diffusion.train.step_limits=[1,7]"])
    assert few.second.steps == 7


@pytest.mark.parametrize(
    ("size", "stage_1", "stage_2", "distinct", "files", "expected"),
    [
        # docs/fit.md: forty photographs, 21.4 dB, "blurred mixtures of the four photographs, none of them a copy yet"
        (32, 1_032, 6_400, 72, 36, "samples are blurred mixtures of the 36 training images, hardly any copies yet"),
        # docs/fit.md: forty emoji, three minutes, 21.9 % of the samples are copies; as many passes as a plan has
        (32, 8_000, 108_000, 72, 36, "samples are near copies and mixtures of the 36 training images"),
        # docs/results/emoji.md: "recognisable flags, and coloured mosaics for everything else"
        (64, 28_800, 27_400, 7_382, 7_382, "samples show typical colours and a rough layout, hardly any objects"),
        # docs/results/emoji.md: heart and grinning face are recognised, coloured shapes for the others
        (64, 14_048, 92_480, 7_382, 7_382, "samples show simple shapes and the most frequent objects"),
        # docs/results/emoji.md: 15 of 24 common prompts are recognised without being told
        (32, 36_088, 137_792, 7_382, 7_382, "common objects are recognisable, rare ones are not"),
        # docs/results/emoji.md: 19 of 24
        (32, 36_088, 554_304, 7_382, 7_382, "most objects are recognisable"),
        # docs/results/emoji.md: "most prompts for known concepts succeed"
        (64, 84_224, 1_069_000, 7_400, 7_400, "most objects are recognisable"),
        # not recorded: a time too short to see even few images often, and one that is long for their number
        (32, 1_500, 6_000, 720, 360, "samples show typical colours and a rough layout, hardly any objects, blurred"),
        (32, 90_000, 900_000, 4_000, 4_000, "recognisable; some may be copies, as each image is seen 225 times"),
    ],
)
def test_what_to_expect_is_what_recorded_runs_gave(
    size: int, stage_1: int, stage_2: int, distinct: int, files: int, expected: str
) -> None:
    assert expected in quality(stage_1, stage_2, distinct, files, "none", size)


def test_of_a_short_stage_1_no_number_is_expected() -> None:
    short, long = (with_settings(make_plan(PHOTOS, machine(), HOUR), Path("x"), [f"autoencoder.train.steps={n}"])
                   for n in (20, 200))  # fmt: skip
    assert "reconstructions show colours and rough shapes." in " ".join(short.reasons)
    assert "usually 20 to 23 dB" in " ".join(long.reasons)


def test_a_short_training_has_a_stage_1_without_high_frequencies_unless_this_is_set_otherwise() -> None:
    long = make_plan(EMOJI, machine(GPU), HOUR)
    assert long.second.images > 80_000
    assert autoencoder_run(long, Path("x")).loss.spectral.probability == 0
    assert "loss.spectral" not in " ".join(long.reasons)
    plan = make_plan(EMOJI, machine(), 300)
    assert plan.second.images < 80_000
    assert autoencoder_run(plan, Path("x")).loss.spectral.probability == 0.5
    assert "reconstructions less sharp" in plan.reasons[1]
    setting = ["autoencoder.loss.spectral={probability: 0}"]
    without = with_settings(plan, Path("x"), setting)
    assert autoencoder_run(without, Path("x"), setting).loss.spectral.probability == 0
    assert "loss.spectral" not in " ".join(without.reasons)
    assert "reconstructions are" in without.reasons[1]
    weaker = with_settings(plan, Path("x"), ["autoencoder.loss.spectral.probability=0.25"])
    assert weaker == plan  # the same sentences


def test_a_plan_stored_before_there_was_spectral_goes_on_without_it(tmp_path: Path) -> None:
    plan = make_plan(EMOJI, machine(), 300)
    store(tmp_path, Fit("images", "0", HOUR, (), plan))
    text = (tmp_path / PLAN).read_text(encoding="utf-8")
    assert '"spectral": true' in text
    (tmp_path / PLAN).write_text(re.sub(r'\s*"spectral": true,', "", text), encoding="utf-8")
    old = stored_fit(tmp_path)
    assert old is not None
    assert autoencoder_run(old.plan, Path("x")).loss.spectral.probability == 0
    assert replace(old.plan, spectral=True) == plan


def test_of_few_images_the_plan_says_what_helps() -> None:
    for count, advised in ((10, True), (40, True), (400, True), (4_000, False), (40_000, False)):
        for minutes in (5, 60):
            plan = make_plan(replace(PHOTOS, images=count), machine(), 60.0 * minutes)
            training = count - plan.held_out
            text = " ".join(plan.warnings)
            assert (f"{training} training images are few" in text) == advised
            assert ("New images are reconstructed worse" in " ".join(plan.reasons)) == advised
            assert plan.quality.count(".") <= 2


def test_settings_go_to_the_stages_that_have_their_section() -> None:
    first, second = settings_by_stage(
        ["data.size=64", "train.seed=3", "model.channels=8", "conditioner.kind=none", "diffusion.train.batch=2"]
    )
    assert first == ["data.size=64", "train.seed=3", "model.channels=8"]
    assert second == ["data.size=64", "train.seed=3", "conditioner.kind=none", "train.batch=2"]
    with pytest.raises(UserError, match="begins with none of"):
        settings_by_stage(["trian.batch=2"])
    with pytest.raises(UserError, match=r"autoencoder\.start=x"):
        settings_by_stage(["start=x"])
    plan = make_plan(PHOTOS, machine(), HOUR)
    assert autoencoder_run(plan, Path("x"), ["autoencoder.train.batch=2", "train.seed=3"]).train.batch == 2
    assert diffusion_run(plan, Path("x"), ["autoencoder.train.batch=2", "train.seed=3"]).train.seed == 3


class Rate:
    """A timer of a machine that trains at one rate; `asked` are the keys of what it timed."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.asked: list[str] = []

    def first(self, plan: FitPlan) -> Pace:
        self.asked.append(plan.first.key)
        return self._pace(first_operations(plan))

    def second(self, plan: FitPlan) -> Pace:
        self.asked.append(plan.second.key)
        return self._pace(second_operations(plan))

    def _pace(self, operations: float) -> Pace:
        return Pace(operations / self.rate, operations)


@pytest.mark.parametrize("rate", [LAPTOP / 5, LAPTOP, SERVER])
def test_measuring_ends_with_a_plan_of_measured_networks(rate: float) -> None:
    bare: MachineFacts = replace(machine(rate), first={}, second={})
    timer = Rate(rate)
    plan = measured_plan(EMOJI, bare, HOUR, timer)
    assert plan.first.key in timer.asked
    assert plan.second.key in timer.asked
    assert len(timer.asked) <= 6
    assert math.isclose(plan.total, make_plan(EMOJI, machine(rate), HOUR).total, rel_tol=0.05)
