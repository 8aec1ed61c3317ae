import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.locks import exclusive, lock_path

HOLD = """
import sys, time
from pathlib import Path
from sfumato.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_with_the_name_of_the_first(tmp_path, holder):
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on "), exclusive(tmp_path / "run"):
        pass


def test_a_killed_holder_does_not_block(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert lock_path(tmp_path / "run").exists()
    with exclusive(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_goes_on_when_the_holder_ends(tmp_path, holder):
    messages: list[str] = []
    threading.Timer(0.3, holder.kill).start()
    t_start = time.monotonic()
    with exclusive(tmp_path / "run", wait=True, log=messages.append):
        assert time.monotonic() - t_start > 0.2
    assert messages == [
        f"waiting for process {holder.pid} on {os.uname().nodename}, which is writing {tmp_path / 'run'}"
    ]


def test_the_folder_may_be_replaced_while_its_lock_is_held(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with exclusive(run):
        run.rename(tmp_path / "old")
        run.mkdir()
        with pytest.raises(UserError, match="is being written"), exclusive(run):
            pass


def test_one_writer_at_a_time(tmp_path):
    """Counts up in a file without any other care: with two writers at once some counts would be lost."""
    file = tmp_path / "count"
    file.write_text("0")
    script = """
import sys
from pathlib import Path
from sfumato.locks import exclusive
file = Path(sys.argv[1])
for _ in range(50):
    with exclusive(file.parent / "out", wait=True):
        file.write_text(str(int(file.read_text()) + 1))
"""
    pythons = [subprocess.Popen([sys.executable, "-c", script, str(file)]) for _ in range(3)]
    assert [process.wait() for process in pythons] == [0, 0, 0]
    assert file.read_text() == "150"


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"), exclusive(tmp_path / "file" / "run"):
        pass
    long = Path(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="cannot be written to"), exclusive(long):
        pass
