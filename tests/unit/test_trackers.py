import logging
import re
import time
from pathlib import Path

import pytest

from reasoner import trackers
from reasoner.errors import UsageError
from reasoner.metrics import MetricsWriter
from reasoner.trackers import check_trackers, trackers_of

DOCS = Path(__file__).parents[2] / "docs" / "run_directory.md"


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    for name in ("WANDB_PROJECT", "WANDB_MODE", "REASONER_TRACKERS"):
        monkeypatch.delenv(name, raising=False)


def test_tensorboard_alone_without_variables(tmp_path):
    (only,) = trackers_of(tmp_path, {}, None)
    assert type(only).__name__ == "TensorBoardTracker"
    only.close()


def test_the_tracker_in_the_docs_works(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n# my_tracker.py\n(import csv.*?)```", DOCS.read_text(), re.S)
    assert len(code.splitlines()) < 20
    (tmp_path / "csv_tracker.py").write_text(code)
    monkeypatch.setenv("REASONER_TRACKERS", f"{tmp_path}/csv_tracker.py:CsvTracker")
    check_trackers()
    with MetricsWriter(tmp_path, trackers_of(tmp_path, {"seed": 0}, None)) as writer:
        writer.write({"step": 0, "eval": {"held_out": {"pass@1": 0.25}}, "loss": None})
        writer.write({"step": 1, "pass_rate": 0.5})
    assert (tmp_path / "metrics.csv").read_text().split() == [
        "0,eval/held_out/pass@1,0.25",
        "1,pass_rate,0.5",
    ]


class Broken:
    def __init__(self, run_dir, config, resume_step):
        if resume_step == 7:
            raise ConnectionError("no route")

    def log(self, step, scalars):
        pass

    def close(self):
        raise TimeoutError("still uploading")


class Incomplete:
    def __init__(self, run_dir, config, resume_step):
        pass


class Endless(Incomplete):
    def log(self, step, scalars):
        pass


def test_what_cannot_start_is_bad_usage_and_what_cannot_close_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("REASONER_TRACKERS", f"{__file__}:Broken")
    with pytest.raises(UsageError, match="Broken cannot start: ConnectionError: no route"):
        trackers_of(tmp_path, {}, 7)
    with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path, trackers_of(tmp_path, {}, None)) as writer:
        writer.write({"step": 0, "loss": 1.0})
    assert "failed to close: Broken: TimeoutError: still uploading" in caplog.text
    for name, message in (
        (f"{__file__}:dict", "no attribute"),
        ("builtins:dict", "cannot start"),
        (f"{__file__}:Incomplete", "Incomplete has no method log and no close$"),
        (f"{__file__}:Endless", "Endless has no method close$"),
    ):
        monkeypatch.setenv("REASONER_TRACKERS", name)
        with pytest.raises(UsageError, match=message):
            trackers_of(tmp_path, {}, None)


def test_wandb_that_is_asked_for_must_be_installed(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "sums")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="wandb is not installed"):
        check_trackers()


@pytest.mark.slow
def test_wandb_offline_records_the_metrics_and_resumes_under_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_PROJECT", "sums")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step, resumed in ((0, None), (1, 0)):
        with MetricsWriter(
            tmp_path, trackers_of(tmp_path, {"seed": 3}, resumed), resume_step=resumed
        ) as writer:
            writer.write({"step": step, "eval": {"held_out": {"pass@1": 0.125 + step}}})
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    run_id = (tmp_path / "wandb" / "id").read_text()
    assert [file.stem for file in files] == [f"run-{run_id}"] * 2
    for file, value in zip(files, (b"0.125", b"1.125"), strict=True):
        end = time.monotonic() + 30  # wandb's own process writes the file after `finish` has returned
        while b"eval/held_out/pass@1" not in (recorded := file.read_bytes()) or value not in recorded:
            assert time.monotonic() < end, recorded
            time.sleep(0.05)
        assert b"sums" in recorded
