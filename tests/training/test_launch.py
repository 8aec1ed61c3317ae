"""Launchers: their variables, noticing the end of a launcher or a process, and which process reports an error."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import sfumato.cli
from forks import LAUNCHER, Forked, Forks, ranks
from runs import FIRST_STAGE
from sfumato.errors import Interrupted, UserError
from sfumato.training.heartbeat import Watch
from sfumato.training.launch import Launch, check_world, launched
from sfumato.training.run import interruptible

ROOT = Path(__file__).parents[2]
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_rank_and_world_are_read_as_each_launcher_names_them() -> None:
    assert launched({}) == Launch(0, 1, None)
    assert launched({"WORLD_SIZE": "1", "RANK": "0"}) == Launch(0, 1, None)
    assert launched(TORCHRUN) == Launch(1, 2, os.getppid())
    assert launched({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}) == Launch(3, 4, None)
    assert launched({"PMI_SIZE": "3", "PMI_RANK": "0"}) == Launch(0, 3, None)
    assert launched({**ACCELERATE, **TORCHRUN}).world == 2
    assert launched({"ACCELERATE_MIXED_PRECISION": "no"}).world == 1, "accelerate launch of one process"
    assert launched({"SLURM_STEP_NUM_TASKS": "2", **TORCHRUN}).world == 2, "torchrun under srun"
    assert launched({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}).world == 1, "a batch script's one process"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (ACCELERATE, r"accelerate launch should start several .* started one.*torch.distributed.run"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, r"srun started 2 processes"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE is 2, but no rank is set"),
        ({"WORLD_SIZE": "two"}, r"WORLD_SIZE.*'two', which is not a number"),
    ],
)
def test_a_promise_of_several_that_made_one_is_an_error(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launched(environment)


def test_another_world_than_the_promised_one_is_an_error() -> None:
    check_world(Launch(0, 2, None), 2)
    with pytest.raises(UserError, match="announced 2 processes, but this one is in a world of 1"):
        check_world(Launch(0, 2, None), 1)


def test_silence_of_one_process_is_not_taken_for_a_sleep_of_all() -> None:
    watch = Watch(2, 0.0)
    for second in range(1, 30):
        watch.update([b"%d" % second, b"%d" % min(second, 5)], float(second))
        assert watch.silent(float(second), 20.0) == ([1] if second > 25 else [])
    assert watch.silent(500.0, 20.0) == [], "the lid was closed: the others slept too"
    assert watch.silent(519.0, 40.0) == []
    assert watch.silent(522.0, 20.0) == [0, 1]


def test_a_signal_ends_a_command_with_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr(sfumato.cli, "app", lambda arguments, number=number: os.kill(os.getpid(), number))
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as end:
            sfumato.cli.main([])
        assert end.value.code == code
        assert signal.getsignal(number) is before
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_second_signal_ends_at_once_unless_a_launcher_passed_the_first_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with interruptible() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGINT


# ---- in processes of their own

ENDLESS = """
import sys
from pathlib import Path
import runs
from sfumato.training import heartbeat

heartbeat.SILENCE, heartbeat.GRACE = 3.0, 10.0
runs.train_first(Path(sys.argv[1]), runs.first_run("train.steps=1000000", "train.save_every=1000000"))
"""


def wait_for_steps(run: Path, process: Forked) -> None:
    """Waits for the first line of the log."""
    end = time.monotonic() + 90
    while not (run / "log.jsonl").exists() or not (run / "log.jsonl").read_text():
        if time.monotonic() > end:
            process.kill()
            pytest.fail("no step in 90 s")
        time.sleep(0.05)


def test_a_stopped_process_ends_the_others_with_the_cause(tmp_path: Path, forks: Forks) -> None:
    """Without a launcher, so that the one that is stopped keeps the store, too, and nobody else kills it."""
    both = [forks.start(ENDLESS, [tmp_path], **rank) for rank in ranks()]
    try:
        wait_for_steps(tmp_path, both[0])
        both[0].send_signal(signal.SIGSTOP)
        assert both[1].wait() == 1
        assert "process 0 of 2 has not answered for 3 s" in both[1].output
        assert "Traceback" not in both[1].output
    finally:
        for process in both:
            process.kill()


def test_a_process_that_is_stopped_before_it_meets_the_others_ends_them_with_the_cause(
    tmp_path: Path, forks: Forks
) -> None:
    code = f"from sfumato.training import heartbeat; heartbeat.MEETING = 2.0\n{ENDLESS}"
    one = forks.start(code, [tmp_path], **ranks()[0])
    assert one.wait() == 1
    assert "process 1 of 2 has not met the others within 2 s of the start" in one.output
    assert "Traceback" not in one.output


def test_the_death_of_the_launcher_ends_its_processes_with_a_checkpoint(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "train.py").write_text(ENDLESS)
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    forks.preload("torch.distributed.run")
    launch = ["--standalone", "--nproc_per_node", 2, tmp_path / "train.py", tmp_path / "run"]
    code = f"import os; os.open({str(tmp_path / 'held')!r}, os.O_WRONLY)\n{LAUNCHER}"
    launcher = forks.start(code, launch)
    wait_for_steps(tmp_path / "run", launcher)
    launcher.kill()
    assert select.select([held], [], [], 120)[0], "the processes, which hold the pipe, go on without their launcher"
    assert os.read(held, 1) == b""
    os.close(held)
    assert launcher.output.count("has ended, so this run ends") == 1
    assert "stopped after step" in launcher.output
    assert list((tmp_path / "run" / "states").glob("step-*.safetensors"))


def test_a_mistake_under_a_launcher_is_printed_once(tmp_path: Path) -> None:
    """With the launcher and its processes as a user starts them; other tests fork them."""
    file = tmp_path / "first.yaml"
    file.write_text(yaml.safe_dump({**FIRST_STAGE, "data": {"kind": "folder", "size": 16}}))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "sfumato"]
    command = [*launch, "train", "autoencoder", str(file), "--data", "absent", "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    out = subprocess.run([sys.executable, *command], env=environment, timeout=120, **output).stdout
    assert out.count("data path") == out.count("sfumato: ") == 1
    assert "sfumato: data path" in out
    assert "gloo" not in out
