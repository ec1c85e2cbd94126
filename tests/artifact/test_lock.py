"""One process at a time in an output folder, held by the kernel: real processes, real kills."""

import errno
import fcntl
import os
import subprocess
import sys

import psutil
import pytest
from helpers import environment, files_in

from fourstage.artifact.lock import NAME, lock_folder, unlock_folder

HOLDER = """
import sys, time
from pathlib import Path
from fourstage.artifact.lock import lock_folder
lock_folder(Path(sys.argv[1]))
if len(sys.argv) > 2:
    import os
    born, birth = os.pipe()
    if not os.fork():
        os.write(birth, b"!")  # what a new process does first is done
        time.sleep(1000)
    os.read(born, 1)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the folder; it lets go at a line of input."""
    started = []

    def hold(*more):
        words = [sys.executable, "-c", HOLDER, tmp_path / "run", *more]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(list(map(str, words)), env=environment(), **streams)
        started.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        process.kill()


def test_the_second_is_refused_and_told_the_first(holder, tmp_path):
    process = holder()
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match="in use by process") as refused:
        lock_folder(tmp_path / "run")
    for part in (f"output_dir={tmp_path / 'run'}", f"`kill {process.pid}`", "--output_dir"):
        assert part in str(refused.value)
    assert files_in(tmp_path) == before == {f"run/{NAME}"}
    process.communicate("end\n", timeout=60)
    assert files_in(tmp_path) == set()
    lock_folder(tmp_path / "run")
    lock_folder(tmp_path / "run")  # once more does no harm
    unlock_folder(tmp_path / "run")


def test_a_killed_process_holds_nothing_and_its_worker_neither(holder, tmp_path):
    process = holder("with a worker")
    (worker,) = psutil.Process(process.pid).children()
    try:
        process.kill()
        process.wait(60)
        lock_folder(tmp_path / "run")
        unlock_folder(tmp_path / "run")
        assert worker.is_running()
    finally:
        worker.kill()


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Another process opened the file, the holder removed it and ended, a third made it anew: two would hold it."""
    folder, real, times = tmp_path / "run", fcntl.flock, []

    def flock(file, how):
        times.append(how)
        if len(times) == 1:
            (folder / NAME).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock_folder(folder)
    assert len(times) == 2 and (folder / NAME).read_text().split()[0] == str(os.getpid())
    unlock_folder(folder)


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock_folder(tmp_path)
    said = capsys.readouterr().err
    assert said.startswith("warning:") and said.count("\n") == 1 and "No locks available" in said
    unlock_folder(tmp_path)


def test_a_folder_made_for_the_lock_goes_with_it_unless_a_run_began_there(tmp_path):
    for name, content in (("empty", None), ("run", "run.json")):
        lock_folder(tmp_path / name)
        if content:
            (tmp_path / name / content).write_text("{}")
        unlock_folder(tmp_path / name)
    (tmp_path / "mine").mkdir()
    lock_folder(tmp_path / "mine")
    unlock_folder(tmp_path / "mine")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "mine"}
