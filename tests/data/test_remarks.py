"""Remarks on images, as sentences: one for each kind, however many images and profiles there are."""

import pytest

from sfumato.data.remarks import sentences_of

P3 = "its colour profile (Display P3) was converted to sRGB"


@pytest.mark.parametrize(
    ("remarks", "sentence"),
    [
        ([P3], "1 image has a colour profile (Display P3) and is converted to sRGB: '0.png'"),
        ([P3] * 10, "10 images have a colour profile (Display P3) and are converted to sRGB, such as '0.png'"),
        (
            [P3, *(P3.replace("Display P3", f"profile {k} (mine)") for k in range(4))],
            "5 images have a colour profile (Display P3, profile 0 (mine), profile 1 (mine) and 2 more) and are "
            "converted to sRGB, such as '0.png'",
        ),
        (
            ["its CIE Lab colours were converted to sRGB"] * 2,
            "2 images have CIE Lab colours and are converted to sRGB, such as '0.png'",
        ),
        (
            ["its colour profile is for CMYK and does not fit an image of the mode RGB: it is ignored"],
            "1 image has a colour profile that is ignored, as it is for CMYK and does not fit an image of the mode "
            "RGB: '0.png'",
        ),
        (
            ["its colour profile is damaged (cannot open profile): it is ignored"] * 3,
            "3 images have a damaged colour profile (cannot open profile), which is ignored, such as '0.png'",
        ),
        (
            [
                "1 pixel is not finite: infinite ones are clipped, NaN is black",
                "1,234 pixels are not finite: infinite ones are clipped, NaN is black",
            ],
            "2 images have pixels that are not finite (infinite ones are clipped, NaN is black), such as '0.png'",
        ),
        (["a remark of a later version"] * 2, "2 images, such as '0.png': a remark of a later version"),
    ],
)
def test_many_remarks_of_a_kind_are_one_sentence(remarks: list[str], sentence: str) -> None:
    assert sentences_of({f"{k}.png": remark for k, remark in enumerate(remarks)}) == [sentence]


def test_each_kind_has_its_sentence_in_the_order_of_the_files() -> None:
    found = sentences_of({"a": P3, "b": "its CIE Lab colours were converted to sRGB", "c": P3})
    assert [sentence.split(" and ")[0] for sentence in found] == [
        "2 images have a colour profile (Display P3)",
        "1 image has CIE Lab colours",
    ]
