import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from afactl import files
from afactl.errors import BusyError, CacheError, UsageError
from afactl.files import lock, require_free, whole_file, without_locks, writing

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def unswept(monkeypatch):
    """As in a process that has just started."""
    monkeypatch.setattr(files, "_swept", set())


def process(code, *arguments):
    """Python code in a process of its own, which tells by a line when it has come so far."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_file_appears_when_it_is_whole_and_with_its_folders(tmp_path):
    target = tmp_path / "a/b/out.txt"
    with whole_file(target) as fresh:
        fresh.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and [path.name for path in target.parent.iterdir()] == ["out.txt"]


def test_an_error_leaves_the_former_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("former")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as fresh:
        fresh.write_text("ha")
        raise KeyboardInterrupt
    assert target.read_text() == "former" and [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    with pytest.raises(FileNotFoundError, match="nothing was written"), whole_file(target):
        pass
    assert target.read_text() == "former" and [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_an_empty_file_is_a_file(tmp_path):
    with whole_file(tmp_path / "out.txt") as fresh:
        fresh.write_text("")
    assert (tmp_path / "out.txt").read_text() == ""


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    target = tmp_path / ("a" * 251 + ".txt")
    with whole_file(target) as fresh:
        fresh.write_text("whole")
    assert target.read_text() == "whole"


WRITER = """
import sys
from pathlib import Path
from afactl.errors import BusyError, UsageError
from afactl.files import lock, require_free, whole_file, without_locks
target, letter = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for _ in range(300):
    with whole_file(target) as fresh:
        fresh.write_text(letter * 100_000)
"""


def test_two_processes_may_write_one_path(tmp_path):
    """Neither fails, and whenever one looks, a whole file of one of them is there."""
    target = tmp_path / "out.txt"
    both = [process(WRITER, target, letter) for letter in "ab"]
    seen = set()
    while any(one.poll() is None for one in both):
        if target.exists():
            seen.add(target.read_text())
    assert [one.wait() for one in both] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000} and [path.name for path in tmp_path.iterdir()] == ["out.txt"]


KEPT_OPEN = """
import sys, time
from pathlib import Path
from afactl.errors import BusyError, UsageError
from afactl.files import lock, require_free, whole_file, without_locks
with whole_file(Path(sys.argv[1])) as fresh:
    fresh.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    living = process(KEPT_OPEN, tmp_path / "living.txt")
    assert living.stdout.readline() == "ready\n"
    (written,) = tmp_path.iterdir()
    killed = process(KEPT_OPEN, tmp_path / "killed.txt")
    assert killed.stdout.readline() == "ready\n"
    killed.kill()
    killed.wait()
    foreign = tmp_path / ".afactl-00000000-0123456789abcdef.part"  # of another machine: who knows
    foreign.write_text("half")
    assert len(list(tmp_path.iterdir())) == 3
    with whole_file(tmp_path / "out.txt") as fresh:
        fresh.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([foreign, written, tmp_path / "out.txt"])
    living.send_signal(signal.SIGINT)
    living.wait()
    assert sorted(tmp_path.iterdir()) == sorted([foreign, tmp_path / "out.txt"])


def test_without_locks_nothing_is_taken_for_left(tmp_path, monkeypatch):
    left = tmp_path / f".afactl-{files._kernel()}-0123456789abcdef.part"
    left.write_text("half")

    def none_here(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none_here)
    with whole_file(tmp_path / "out.txt") as fresh:
        fresh.write_text("whole")
    assert left.exists() and (tmp_path / "out.txt").read_text() == "whole"


def test_a_pipe_is_written_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    with whole_file(pipe) as fresh:
        fresh.write_text("whole")
    assert reader.communicate(timeout=10)[0] == "whole" and pipe.is_fifo()


def test_a_device_stays_one():
    with whole_file(Path("/dev/null")) as fresh:
        fresh.write_text("whole")
    assert Path("/dev/null").is_char_device()
    assert all(files.is_device(Path(name)) for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null"))
    assert not files.is_device(Path("/dev/shm/out.txt")) and not files.is_device(Path("out.txt"))


def test_the_folder_is_searched_once(tmp_path, monkeypatch):
    """Thousands of masks go into one folder: listing it for each of them would take longer than writing them."""
    looked = []
    original = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked.append(folder) or original(folder))
    for number in range(5):
        with whole_file(tmp_path / f"{number}.txt") as fresh:
            fresh.write_text("whole")
    assert len(looked) == 1


HOLDER = """
import sys, time
from pathlib import Path
from afactl.files import lock
with lock(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_lock_keeps_another_process_out_until_it_ends(tmp_path):
    holder = process(HOLDER, tmp_path / "lock", 60)
    assert holder.stdout.readline() == "ready\n"
    with pytest.raises(BusyError, match="another process is at work there; wait for that one to end"):
        lock(tmp_path / "lock")
    holder.kill()
    holder.wait()
    held = lock(tmp_path / "lock", 10)
    held.release()
    held.release()
    lock(tmp_path / "lock").release()


def test_a_lock_waits_as_long_as_it_is_told(tmp_path):
    holder = process(HOLDER, tmp_path / "lock", 0.5)
    assert holder.stdout.readline() == "ready\n"
    lock(tmp_path / "lock", 60).release()
    assert holder.wait() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_can_be_used_all_the_same(tmp_path, monkeypatch, number):
    def none_here(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", none_here)
    with pytest.raises(
        UsageError, match="this file system has no locks .*; use a folder on another one, or add --no-lock"
    ):
        lock(tmp_path / "lock", 60)
    assert not list(tmp_path.iterdir())
    with without_locks(), lock(tmp_path / "lock"), lock(tmp_path / "lock"):
        assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="no locks"):
        lock(tmp_path / "lock")


def test_what_is_there_is_replaced_only_where_the_user_says_so(tmp_path):
    there, free = tmp_path / "a.json", tmp_path / "deep" / "b.json"
    there.write_text("mine")
    require_free([("--json", None), ("--out", free)])
    with pytest.raises(UsageError, match="--json: .*a.json is there already; give another name, or --overwrite"):
        require_free([("--json", there), ("--out", free)])
    require_free([("--json", there), ("--out", free)], overwrite=True)
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"--out: .*a.json \(and 1 more\) is there already"):
        require_free([("--out", there), ("--out", tmp_path / "link")])
    with pytest.raises(UsageError, match="--out .*a.json/deep/b.json: cannot be written .*a.json is no folder"):
        require_free([("--out", there / "deep" / "b.json")])
    with pytest.raises(UsageError, match="is a folder; give another name"):
        require_free([("--out", tmp_path)], overwrite=True)
    assert not free.parent.exists()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["photo.png", "./deep/../photo.png", "link.png", "same.png", "linked/photo.png"])
def test_what_is_read_is_never_replaced_whatever_its_name(tmp_path, monkeypatch, name, overwrite):
    photo = tmp_path / "photo.png"
    photo.write_text("mine")
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "same.png").hardlink_to(photo)
    (tmp_path / "linked").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--out: .* is read by this command and never overwritten; give another name"):
        require_free([("--out", Path(name))], overwrite, [photo, tmp_path / "gone.png"])


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.png", "./a.png"), ("A.png", "a.png"), ("x/a.png", "linked/a.png"), ("\u00e9.png", "e\u0301.png")],
)
def test_two_results_with_one_name_are_refused(tmp_path, monkeypatch, one, other):
    (tmp_path / "x").mkdir()
    (tmp_path / "linked").symlink_to("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="two results would be one file"):
        require_free([("--out", Path(one)), ("--gif", Path(other))], overwrite=True)
    require_free([("--out", Path(one)), ("--gif", Path("b") / other)])


def test_a_folder_without_permission_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, how: Path(folder) != tmp_path)  # root may write everywhere
    with pytest.raises(UsageError, match="--out .*b.json: cannot be written .no permission in .*; give another name"):
        require_free([("--out", tmp_path / "deep" / "b.json")])


def test_a_device_may_be_named(tmp_path):
    require_free([("--json", Path("/dev/null")), ("--out", Path("/dev/stdout")), ("--gif", Path("/dev/stdout"))])


def refused(kind, message, raised, *arguments, **more):
    with pytest.raises(kind, match=message), writing(*arguments, **more):
        raise raised


def test_what_the_system_has_against_writing_becomes_one_line(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = r"^--out x: cannot be written \(No space left on device\); give another file$"
    refused(UsageError, message, full, "--out x", "give another file")
    message = r"^c.h5: cannot be written \(a disk without words\); make room$"
    refused(CacheError, message, OSError("a disk without words\nand more"), "c.h5", "make room", CacheError)


def test_what_a_library_raises_for_a_full_disk_is_told_alike():
    full = RuntimeError("unexpected pos 0 vs 1\nat line 3")
    message = r"^--out w.pth: cannot be written \(unexpected pos 0 vs 1\); give another file$"
    refused(UsageError, message, full, "--out w.pth", "give another file", also=(RuntimeError,))
    refused(RuntimeError, "unexpected pos", full, "--out w.pth", "give another file")
    with writing("--out w.pth", "give another file"):
        pass


def test_the_nearest_existing_is_the_path_itself_or_a_folder_above_it(tmp_path):
    (tmp_path / "file").write_text("")
    assert files.nearest_existing(tmp_path / "file") == tmp_path / "file"
    assert files.nearest_existing(tmp_path / "deep" / "deeper") == tmp_path
