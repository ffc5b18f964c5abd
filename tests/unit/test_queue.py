import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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


def test_younger_groups_do_not_take_the_places_that_older_ones_will_need():
    queue = RolloutQueue(groups_per_step=2, max_staleness=2, max_concurrent=99)

    def admit():
        for key in range(started[0], started[0] + queue.admissible):
            queue.start(key)
            started[0] += 1

    def finish(*keys):
        for key in keys:
            queue.finish(key, group(queue.running[key], key))

    def take():
        fresh, stale = queue.take_batch()
        queue.version = queue.serving = queue.version + 1
        admit()
        return [g.index for g in fresh], stale

    started = [0]
    admit()  # 0 to 5 at version 0: for the three steps to come
    finish(0, 1)
    assert take() == ([0, 1], [])
    finish(2, 6)
    assert not queue.batch_ready, "6 is of version 1: with it, 3, 4 and 5 would share the two last places"
    finish(3)
    assert queue.batch_ready and take() == ([2, 3], [])
    finish(4)
    assert not queue.batch_ready
    finish(5)
    assert queue.batch_ready and take() == ([4, 5], [])


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 30), st.lists(st.integers(0, 99), min_size=60))
def test_nothing_is_dropped_whatever_finishes_first(groups_per_step, max_staleness, concurrent, choices):
    queue = RolloutQueue(groups_per_step, max_staleness, max_concurrent=max(groups_per_step, concurrent))
    started = 0
    for choice in choices:
        for _ in range(queue.admissible):
            queue.start(started)
            started += 1
        if queue.batch_ready:
            fresh, stale = queue.take_batch()
            assert len(fresh) == groups_per_step and not stale
            queue.version = queue.serving = queue.version + 1
        else:
            assert queue.running, "it waits for what is running, never for nothing"
            key = list(queue.running)[choice % len(queue.running)]
            queue.finish(key, group(queue.running[key], key))


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
