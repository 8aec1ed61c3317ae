"""Refusals of `sfumato serve` before it opens a port."""

from pathlib import Path

import pytest

from command_line import Command, check


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--folder", "nowhere"), "--folder 'nowhere' does not exist"),
        (("--allow-origin", "zzz"), "allow origin 'zzz' is not an origin"),
        (("--allow-origin", "http://a.b/page"), "is not an origin"),
        (("--allow-host", "http://proxy"), "allow host 'http://proxy' is not a host name"),
        (("--token", ""), "--token is empty"),
        (("--host", "0.0.0.0"), "give a token"),
        (("--out", "/proc/x"), "--out '/proc/x' cannot be written to"),
    ],
)
def test_bad_settings_are_refused(command: Command, tmp_path: Path, given: tuple[str, str], sentence: str) -> None:
    out = () if "--out" in given else ("--out", tmp_path / "out")
    check(command("serve", "zoo:toy", "--device", "cpu", *out, *given), sentence)
    assert list(tmp_path.iterdir()) == []
