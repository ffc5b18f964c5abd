import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reasoner import checkpoint
from reasoner.checkpoint import CheckpointStore, is_complete, load_state, verify
from reasoner.errors import ReasonerError, UsageError

DIED = 9
CHANGES = {"ctypes.dlsym", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.rmtree"}


class SafetensorError(Exception):
    """As safetensors' own, no OSError."""


def weights(text: str):
    def write(directory: Path) -> None:
        (directory / "model.safetensors").write_text(text)
        (directory / "trainer" / "optimizer.bin").write_text("moments of " + text)

    return write


def names(store: CheckpointStore) -> list[str]:
    return [p.name for p in store.complete()]


def test_saved_checkpoint_is_latest_and_holds_files_and_state(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    path = store.save(7, weights("a"), {"position": 112})
    assert path == tmp_path / "checkpoints" / "step_000007" == store.latest()
    assert (path / "model.safetensors").read_text() == "a"
    assert load_state(path) == {"step": 7, "position": 112}
    assert (tmp_path / "checkpoints" / "latest").resolve() == path
    verify(path)
    assert not list((tmp_path / "checkpoints").glob(".incomplete*"))


def test_retention_keeps_the_newest_and_the_best_and_the_hashes_of_all(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 6):
        store.save(step, weights(str(step)), {}, best=step == 2)
    assert names(store) == ["step_000002", "step_000004", "step_000005"]
    assert store.best() == store.path(2)
    lines = [json.loads(line) for line in (tmp_path / "checkpoints/hashes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    # sha256 of "1"
    expected = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert lines[0]["files"]["model.safetensors"] == {"bytes": 1, "sha256": expected}


def test_a_failing_write_leaves_the_previous_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, weights("a"), {})

    def fail(directory: Path) -> None:
        (directory / "model.safetensors").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.save(2, fail, {})
    assert names(store) == ["step_000001"]
    assert not list((tmp_path / "checkpoints").glob(".incomplete*"))


def test_a_full_disk_is_one_clear_error(tmp_path):
    store = CheckpointStore(tmp_path)

    def full(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ReasonerError, match=r"step_000003: No space left on device; free some space"):
        store.save(3, full, {})


def test_so_is_what_safetensors_says_of_a_full_disk(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(2, weights("a"), {})

    def full(directory: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(ReasonerError, match=r"step_000003: No space left on device; free some space"):
        store.save(3, full, {})
    assert names(store) == ["step_000002"]


def test_a_death_while_a_step_is_saved_again_leaves_one_checkpoint_of_it(tmp_path):
    """A child process dies before its n-th change of a directory, for every n."""
    for changes in itertools.count():
        store = CheckpointStore(tmp_path / str(changes), keep=1)
        store.save(1, weights("old"), {})
        child = os.fork()
        if child == 0:
            try:
                die_before_change(changes)
                store.save(1, weights("new"), {})
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        newest, faults = store.newest_intact()
        assert newest == store.path(1) and not faults, f"after {changes} changes"
        assert (tmp_path / str(changes) / "checkpoints" / "latest").resolve() == newest
        if ended == 0:
            break
        assert ended == DIED
    assert (newest / "model.safetensors").read_text() == "new" and changes > 8


def die_before_change(number: int) -> None:
    counted = itertools.count()

    def hook(event: str, args: object) -> None:
        if event in CHANGES and next(counted) == number:
            os._exit(DIED)

    sys.addaudithook(hook)


def test_a_step_is_saved_again_where_directories_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_RENAME_EXCHANGE", -1)  # a flag that the kernel refuses
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, weights("old"), {})
    store.save(1, weights("new"), {})
    assert (store.path(1) / "model.safetensors").read_text() == "new"
    assert not list((tmp_path / "checkpoints").glob(".incomplete*"))


def test_truncated_and_damaged_checkpoints_are_recognised(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, weights("abc"), {})
    newest = store.save(2, weights("def"), {})
    (newest / "model.safetensors").write_text("de")
    assert not is_complete(newest)
    assert store.latest() == store.path(1)
    (newest / "model.safetensors").write_text("dxf")
    assert store.latest() == newest
    with pytest.raises(ReasonerError, match=r"damaged: model\.safetensors has sha256"):
        verify(newest)


def test_a_directory_without_manifest_is_no_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    (tmp_path / "checkpoints" / "step_000009").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_junk").mkdir()
    assert store.latest() is None
    with pytest.raises(ReasonerError, match="is it a checkpoint of a run"):
        load_state(tmp_path / "checkpoints" / "step_000009")


def test_going_back_sets_newer_checkpoints_aside_and_forgets_their_hashes(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    for step in (1, 2, 3):
        store.save(step, weights(f"first {step}"), {})
    (store.path(3) / "model.safetensors").write_text("first")
    (store.path(2) / "model.safetensors").write_text("FIRST 2")
    found, faults = store.newest_intact()
    assert found == store.path(1)
    assert "step_000003 is damaged: model.safetensors has 5 of 7 bytes" in faults[0]
    assert "step_000002 is damaged: model.safetensors has sha256" in faults[1]
    store.go_back(1)
    assert names(store) == ["step_000001"]
    assert (tmp_path / "checkpoints" / "latest").resolve() == store.path(1)
    assert (tmp_path / "checkpoints" / "damaged_step_000003").is_dir()
    assert list(store.hashes()) == [1], "steps 2 and 3 are undone"
    store.save(3, weights("second"), {})
    store.save(3, weights("third"), {})
    assert (store.path(3) / "model.safetensors").read_text() == "third"
    assert store.hashes()[3]["model.safetensors"] == hashlib.sha256(b"third").hexdigest()
    lines = [json.loads(line) for line in (tmp_path / "checkpoints/hashes.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [1, 2, 3, None, 3, 3], "all that were written"


def test_a_step_done_again_with_the_same_files_counts_again(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(1, weights("a"), {})
    store.save(2, weights("b"), {})
    before = store.hashes()
    store.go_back(1)
    store.save(2, weights("b"), {})
    assert store.hashes() == before and list(before) == [1, 2]


def test_hashes_lost_in_a_crash_are_restored_from_the_manifests(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(1, weights("a"), {})
    store.save(2, weights("b"), {})
    log = tmp_path / "checkpoints/hashes.jsonl"
    complete = log.read_bytes()
    log.write_bytes(complete[:-40])
    store.save(3, weights("c"), {})
    assert log.read_bytes().startswith(complete)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_keep_zero_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        CheckpointStore(tmp_path, keep=0)


KILLED_WRITER = """
import sys, time
from pathlib import Path
from reasoner.checkpoint import CheckpointStore
def write(directory):
    (directory / "model.safetensors").write_bytes(b"x" * 100)
    print("writing", flush=True)
    time.sleep(60)
CheckpointStore(Path(sys.argv[1])).save(2, write, {})
"""


def test_kill_9_in_the_middle_leaves_the_previous_latest(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, weights("a"), {"position": 1})
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    leftovers = list((tmp_path / "checkpoints").glob(".incomplete*"))
    assert len(leftovers) == 1
    latest = CheckpointStore(tmp_path).latest()
    assert latest == store.path(1) == (tmp_path / "checkpoints" / "latest").resolve()
    verify(latest)
    store.save(2, weights("b"), {})
    assert not leftovers[0].exists()
    assert store.latest() == store.path(2)


RACING_WRITER = """
import sys
from pathlib import Path
from reasoner.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep=1)
print("go", flush=True)
for step in range(10_000):
    store.save(step, lambda d: (d / "model.safetensors").write_bytes(b"x" * 1000), {})
"""


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.11])
def test_kill_9_at_any_moment_leaves_a_valid_latest(tmp_path, delay_s):
    store = CheckpointStore(tmp_path, keep=1)
    process = subprocess.Popen(
        [sys.executable, "-c", RACING_WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "go\n"
    while store.latest() is None:
        time.sleep(0.001)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    latest = store.latest()
    assert latest is not None
    verify(latest)
    store.save(20_000, weights("after"), {})
    assert names(store) == ["step_020000"]
