"""Where the frozen text encoder of a model folder is."""

from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.interop.text_encoders import place_of


def test_it_is_inside_the_folder_or_a_students_in_its_teachers(tmp_path: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    (teacher / "text_encoder").mkdir(parents=True)
    student.mkdir()
    assert place_of("text_encoder", teacher) == teacher / "text_encoder"
    assert place_of(str(teacher / "text_encoder"), student) == teacher / "text_encoder"
    for elsewhere in ("text_encoder", "openai/clip-vit-large-patch14"):
        with pytest.raises(UserError, match=f"'{elsewhere}' is not inside the model folder"):
            place_of(elsewhere, student)
