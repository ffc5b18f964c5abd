import numpy as np

from reasoner.types import Group, Rollout, Task
from rollouts.queue import RolloutQueue

TASK = Task("t", "1+1", "2")


def group(version, index=0):
    mask, versions = np.array([False, True]), np.array([-1, version])
    one = Rollout(TASK, np.array([5, 6]), mask, np.zeros(2), versions, "2", True, False)
    return Group(TASK, (one,), index)


def test_on_policy_admits_one_step_and_nothing_ahead():
    queue = RolloutQueue(groups_per_step=4, max_staleness=0, max_concurrent=100)
    assert queue.admissible == 4
    for key in range(4):
        queue.start(key)
    assert queue.admissible == 0
    for key in range(4):
        queue.finish(key, group(0))
    assert queue.admissible == 0 and queue.batch_ready
    fresh, stale = queue.take_batch()
    assert (len(fresh), stale) == (4, [])
    assert queue.admissible == 0, "nothing runs on weights that are about to change"
    queue.version = queue.serving = 1
    assert queue.admissible == 4


def test_staleness_two_runs_ahead_by_two_versions():
    queue = RolloutQueue(groups_per_step=4, max_staleness=2, max_concurrent=100)
    assert queue.admissible == 12
    queue.max_concurrent = 5
    assert queue.admissible == 5


def test_while_weights_are_under_way_rollouts_count_as_of_the_version_before():
    queue = RolloutQueue(groups_per_step=1, max_staleness=1, max_concurrent=10)
    for key in "ab":
        queue.start(key)
    queue.finish("a", group(0))
    queue.take_batch()
    queue.version = 1  # the servers do not have it yet
    assert queue.admissible == 0, "another one could be trained on at version 2, with tokens of version 0"
    queue.finish("b", group(0))
    assert queue.batch_ready, "the learner need not wait for the servers"
    queue.serving = 1
    assert queue.admissible == 1


def test_replaced_groups_leave_the_count():
    queue = RolloutQueue(groups_per_step=2, max_staleness=0, max_concurrent=10)
    queue.start("a")
    queue.start("b")
    queue.finish("a", group(0), keep=False)
    assert queue.admissible == 1 and not queue.batch_ready


def test_waits_for_a_straggler_that_would_become_too_old():
    queue = RolloutQueue(groups_per_step=1, max_staleness=1, max_concurrent=10)
    queue.start("slow")
    queue.start("fast")
    queue.finish("fast", group(0))
    assert queue.batch_ready, "after this update the straggler is one version old: still allowed"
    queue.take_batch()
    queue.version = queue.serving = 1
    queue.start("next")
    queue.finish("next", group(1))
    assert not queue.batch_ready, "another update would make it two versions old"
    queue.finish("slow", group(0))
    assert queue.batch_ready
    fresh, stale = queue.take_batch()
    assert ([g.oldest_version for g in fresh], stale) == ([0], []), (
        "what was waited for is what is trained on"
    )


def test_too_old_groups_are_reported_not_trained_on():
    queue = RolloutQueue(
        groups_per_step=2, max_staleness=1, max_concurrent=10, version=5, serving=5, trained=10
    )
    for key, version in (("old", 3), ("ok", 4)):
        queue.start(key)
        queue.finish(key, group(version))
    fresh, stale = queue.take_batch()
    assert [g.oldest_version for g in fresh] == [4]
    assert [g.oldest_version for g in stale] == [3]


def test_a_batch_is_ordered_by_age_and_stream_whatever_arrived_first():
    queue = RolloutQueue(groups_per_step=3, max_staleness=1, max_concurrent=10, version=1, serving=1)
    for index, version in ((7, 1), (5, 1), (6, 0), (4, 1)):
        queue.start(index)
        queue.finish(index, group(version, index))
    fresh, _ = queue.take_batch()
    assert [g.index for g in fresh] == [6, 4, 5]
    assert [g.index for g in queue.queued] == [7]
