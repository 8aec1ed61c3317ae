"""torchrun starts all processes again after one was killed: they meet, and do not find what the dead ones left."""

from pathlib import Path

from forks import LAUNCHER, Forks

KILLED_ONCE = """
import os, signal, sys, time
from pathlib import Path
from sfumato.training.workers import Workers

rank, start = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
if (rank, start) == ("1", "1"):
    time.sleep(1)  # until then the store has only the address that this rank had before
workers = Workers("cpu")
if (rank, start) == ("1", "0"):
    os.kill(os.getpid(), signal.SIGKILL)
Path(sys.argv[1], f"{start}-{rank}").write_text(str(workers.greatest(int(rank))))
workers.close()
"""


def test_processes_meet_again_after_a_restart(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "work.py").write_text(KILLED_ONCE)
    (tmp_path / "out").mkdir()
    forks.preload("torch.distributed.run")
    launch = ["--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    process = forks.start(LAUNCHER, [*launch, tmp_path / "work.py", tmp_path / "out"])
    assert process.wait(180) == 0, process.output[-3000:]
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"1-0": "1", "1-1": "1"}
