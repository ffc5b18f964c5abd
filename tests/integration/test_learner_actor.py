"""The learner's ranks as Ray actors: the first one commands the others, and does not outlive them."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest
import ray
import tiny_model
from tiny_learner import TEMPERATURE, learner, make_batch, make_model, token_ids

from reasoner.config import Config
from reasoner.errors import ReasonerError, UsageError
from reasoner.learner_actor import LearnerActor
from reasoner.processes import Processes
from rollouts.fleet import Fleet

pytestmark = pytest.mark.slow


class Probed(LearnerActor):
    def pid(self) -> int:
        os.write(2, b"asked for its pid\n")  # as native code writes
        return os.getpid()

    def refuse(self) -> None:
        """A call that the other rank cannot do."""
        with self._together("refuse"):
            if self.learner.ranks.rank:
                raise UsageError("not with me")
            self.learner.ranks.sum(np.zeros(1))  # waits for the other


def start(model_dir, log_dir) -> list:
    config = Config(
        rollout={"temperature": TEMPERATURE},
        learner={"ranks": 2, "threads": 1, "lr": 1e-2, "grad_clip": 1e9, "device": "cpu"},
    )
    ranks = [ray.remote(num_cpus=1)(Probed).remote() for _ in range(2)]
    ray.get(ranks[0].setup.remote(str(model_dir), str(model_dir), config, log_dir, ranks[1:]), timeout=240)
    return ranks


@pytest.fixture(scope="module", autouse=True)
def running_ray():
    tiny_model.start_ray()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module
    yield
    ray.shutdown()


def test_two_ranks_update_save_and_die_together(tmp_path):
    model_dir = make_model(tmp_path)
    batch = make_batch([np.full(len(ids), -2.0, np.float32) for ids in token_ids()])
    ranks = start(model_dir, tmp_path)
    result = ray.get(ranks[0].update.remote(batch, 1.0), timeout=120)
    expected = learner(model_dir).update(batch)
    assert result.metrics["grad_norm"] == pytest.approx(expected.metrics["grad_norm"], rel=1e-5)
    ray.get(ranks[0].save.remote(tmp_path / "saved"), timeout=120)
    assert len(list((tmp_path / "saved" / "trainer").glob("optimizer-*-of-00002.safetensors"))) == 2
    assert ray.get(ranks[0].fingerprint.remote(), timeout=60)["ranks"] == 2

    pid = ray.get(ranks[1].pid.remote())
    assert "asked for its pid" in (tmp_path / "learner-1.log").read_text()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(ranks[0].update.remote(batch, 1.0), timeout=120)


def test_what_another_rank_refuses_is_what_the_caller_hears(tmp_path):
    ranks = start(make_model(tmp_path), tmp_path)
    with pytest.raises(ReasonerError, match="not with me"):
        ray.get(ranks[0].refuse.remote(), timeout=120)


def wait_until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def test_ranks_are_placed_together_or_named_and_what_was_reserved_is_given_back(tmp_path):
    def all_free() -> bool:
        return ray.available_resources().get("CPU") == 2.0

    wait_until(all_free, "the learners of the other tests are gone")
    fleets = Fleet([]), Fleet([])
    processes = Processes(Config(learner={"ranks": 2}), *fleets, tmp_path, tmp_path)
    for _ in range(2):  # the second time as after a death
        processes.start_learner(tmp_path)
        wait_until(lambda: processes.describe_learner() == "the learner is starting", "both have a place")
        assert not all_free()
    processes.stop()
    wait_until(all_free, "both have given their places back")

    three = Processes(Config(learner={"ranks": 3}), *fleets, tmp_path, tmp_path)
    three.start_learner(tmp_path)
    expected = "the learner is pending (the cluster has room for 2 of its 3 ranks)"
    assert three.describe_learner() == expected and all_free()
    three.stop()
