"""The files that the page may read: below the given folders, links resolved."""

from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.studio.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "given" / "inner").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "given" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "given" / "out").symlink_to(tmp_path)
    return Places((tmp_path / "given",))


def test_paths_below_a_folder_are_allowed(places: Places, tmp_path: Path) -> None:
    assert places.below(str(tmp_path / "given" / "inner")) == tmp_path / "given" / "inner"
    assert places.new(str(tmp_path / "given" / "a" / "b")) == tmp_path / "given" / "a" / "b"
    assert places.new("fresh") == tmp_path / "given" / "fresh"


def test_a_new_folder_may_begin_with_the_name_of_a_given_one(places: Places, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    both = Places((*places.folders, tmp_path / "runs"))
    assert both.new("runs/mine") == tmp_path / "runs" / "mine"
    assert both.new("given/mine") == tmp_path / "given" / "mine"
    assert both.new("mine") == tmp_path / "given" / "mine"
    assert both.new(".") == tmp_path / "given"


@pytest.mark.parametrize("name", ["given/link.png", "given/../secret.png", "secret.png", "given/out/secret.png", ".."])
def test_paths_that_lead_out_are_refused(places: Places, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="outside of the studio's folders"):
        places.below(str(tmp_path / name))


@pytest.mark.parametrize("name", ["given/out/made", "../made", "given/../made"])
def test_new_folders_are_not_made_elsewhere(places: Places, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="outside of the studio's folders"):
        places.new(str(tmp_path / name))


def test_what_is_missing_or_no_path_is_one_sentence(places: Places) -> None:
    for text in ("nowhere", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="does not exist"):
            places.below(text)
    with pytest.raises(UserError, match="empty"):
        places.new("  ")


def test_a_search_passes_over_hidden_folders_and_links(places: Places, tmp_path: Path) -> None:
    (tmp_path / "given" / ".hidden").mkdir()
    found = list(places.folders_in(lambda folder, files, inner: True))
    assert found == [tmp_path / "given", tmp_path / "given" / "inner"]
