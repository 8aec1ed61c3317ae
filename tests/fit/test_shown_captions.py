"""Which captions the page of a fit shows."""

from sfumato.fit.evaluate import by_frequency, mixed


def test_equally_frequent_captions_come_in_no_order_of_the_folder() -> None:
    texts = [f"{name} button" for name in "ABCDEFGHIJ"] + [f"flag {number}" for number in range(10)]
    shown = mixed([*texts, "", *texts])
    assert sorted(shown) == sorted(texts)
    assert {text.split()[-1] == "button" for text in shown[:6]} == {True, False}
    assert mixed(reversed(texts)) == shown, "a folder in another order shows the same"


def test_the_most_frequent_captions_come_first() -> None:
    texts = ["rare", "often", "often", "", "twice", "twice", "often", "another"]
    assert by_frequency(texts)[:2] == ["often", "twice"]
    assert set(by_frequency(texts)[2:]) == {"rare", "another"}
