"""The page: every section, nothing fetched from elsewhere, well-formed, and the same numbers as the JSON."""

import json
import re
from html.parser import HTMLParser

import pytest
from fabricated import COMMANDS, gallery, logs, prompt_set, result

from sfumato.data.toyworld.facts import Fact, Score
from sfumato.report.curves import running_mean
from sfumato.report.format import duration
from sfumato.report.page import PAPER, render
from sfumato.report.result import DemoResult
from sfumato.report.verdict import verdict_of

TITLES = (
    "Stage 1: reconstruction",
    "Stage 2: samples and their prompts",
    "From noise to an image",
    "Training curves",
    "Do the images match their prompts?",
    "Speed and size",
    "Commands: repeat and continue",
)


VOID = frozenset({"img", "meta", "br", "hr"})


class Reader(HTMLParser):
    """Collects text and addresses; fails where tags do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[tuple[str, str]] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [(tag, v or "") for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def page() -> tuple[DemoResult, str]:
    scenes = prompt_set()
    numbers = result(scenes)
    return numbers, render(numbers, gallery(scenes), *logs(), COMMANDS)


@pytest.fixture(scope="module")
def read(page: tuple[DemoResult, str]) -> Reader:
    reader = Reader()
    reader.feed(page[1])
    reader.close()
    return reader


def test_tags_nest_and_all_sections_are_there(page: tuple[DemoResult, str], read: Reader) -> None:
    assert read.open == []
    assert page[1].startswith("<!doctype html>")
    places = [page[1].index(f"<h2>{title}</h2>") for title in TITLES]
    assert places == sorted(places)


def test_the_page_fetches_no_other_file(page: tuple[DemoResult, str], read: Reader) -> None:
    assert read.addresses
    for tag, address in read.addresses:
        assert address.startswith("data:image/png;base64,") or (tag, address) == ("a", PAPER)
    assert not re.search(r"@import|url\(|<script|<link", page[1])


def test_every_image_has_a_description(read: Reader) -> None:
    assert all(image["alt"] for image in read.images)
    pairs, latent, prompts, sheet, strip = 2 * 8, 1 + 4, 4 * (3 + 1), 8, 8 * 2
    assert len(read.images) == pairs + latent + prompts + sheet + strip


def test_the_numbers_are_those_of_the_json(page: tuple[DemoResult, str], read: Reader) -> None:
    numbers, words = json.loads(json.dumps(page[0].to_json())), " ".join(read.words)
    headline = numbers["headline"]
    assert f"{100 * headline['facts_right']:.1f} %" in words
    assert f"{headline['psnr']:.1f} dB" in words
    assert headline["facts_right"] == numbers["generated"]["rates"]["facts"]
    assert headline["images_per_second"] == pytest.approx(1 / numbers["sampling"]["seconds_in_batch"])
    assert numbers["autoencoder"]["images_per_second"] == pytest.approx(40_000 / 245)
    assert numbers["first_stage"]["compression"] == 12
    assert numbers["first_stage"]["factor"] == 4
    for row in ("generated", "real", "reconstructed", "chance"):
        for share in numbers[row]["rates"].values():
            assert f"{100 * share:.1f}" in words
    assert str(sum(numbers["facts"].values())) in words


def test_real_scenes_score_above_wrong_images_and_those_above_chance(page: tuple[DemoResult, str]) -> None:
    numbers = page[0]
    assert numbers.real.rates["facts"] == 1
    assert numbers.chance.rates["facts"] < 0.5 < numbers.generated.rates["facts"] < 1


def test_text_of_users_is_escaped(page: tuple[DemoResult, str], read: Reader) -> None:
    assert "a <red> & blue star" in " ".join(read.words)
    assert "<red>" not in page[1]


def test_a_verdict_marks_every_fact() -> None:
    facts = (Fact("count", 1), Fact("shape", "star", 0), Fact("colour", "red", 0), Fact("background", "navy"))
    verdict = verdict_of(Score(facts, (True, True, False, True)))
    assert (verdict.right, verdict.stated) == (3, 4)
    assert verdict.lines == ((("red", False), ("star", True)), (("1 object", True), ("navy background", True)))


def test_relations_in_a_row_are_numbered() -> None:
    facts = (Fact("relation", "above", 0), Fact("relation", "above", 1))
    (line,) = verdict_of(Score(facts, (True, False))).lines
    assert line == (("1 above 2", True), ("2 above 3", False))


def test_wrong_facts_are_marked(page: tuple[DemoResult, str]) -> None:
    assert page[1].count('<span class="fact wrong"><b>✗</b>') > 0
    assert page[1].count('<span class="fact"><b>✓</b>') > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (48, "48 s"), (712.4, "11 min 52 s"), (3 * 3600 + 300, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_running_mean_of_a_constant_is_that_constant() -> None:
    smooth = running_mean([(float(x), 2.5) for x in range(5)])
    assert [y for _, y in smooth] == pytest.approx([2.5] * 5)


def test_each_sample_is_named_where_the_row_of_headings_is_hidden(page: tuple[DemoResult, str]) -> None:
    """Narrow pages stack the columns, so each carries its own heading; wide ones hide those."""
    names = ("guidance 1 (off)", "guidance 3", "guidance 6", "real scene")
    for name in names:
        assert page[1].count(f"<span>{name}</span>") == 1
        assert page[1].count(f'<p class="column">{name}</p><img') == 4
    wide, narrow = page[1].split("@media (max-width: 820px)", 1)
    assert ".sample .column { display: none; }" in wide
    assert re.search(r"\.sample\.head { display: none; }\s*\.sample \.column { display: block;", narrow)
