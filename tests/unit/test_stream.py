"""Which task comes next, by hand: what a finite source of three tasks still has to offer."""

from dataclasses import replace

import numpy as np

from reasoner.stream import TaskStream
from reasoner.types import Group, Rollout, Task, Verdict

ONE = np.ones(1, np.int32)
ROLLOUT = Rollout(Task("t0", "?", "1"), ONE, ONE.astype(bool), ONE.astype(np.float32), ONE, "1", True, False)


class Three:
    """t0, t1, t2, t0, …"""

    finite = True

    def train(self, index):
        return Task(f"t{index % 3}", "?", "1")


def stream(**fields):
    return TaskStream(Three(), retire_pass_rate=0.5, **fields)


def positions(stream, n):
    return [stream.next()[0] for _ in range(n)]


def group(index, *verdicts):
    task = Three().train(index)
    return Group(task, tuple(replace(ROLLOUT, task=task, verdict=v) for v in verdicts), index)


RIGHT, WRONG, BROKEN = Verdict.correct(), Verdict.wrong(), Verdict.error("it broke")


def test_outstanding_positions_come_first_and_journaled_ones_not_again():
    running = stream(next_index=10, outstanding=[4, 7, 8])
    running.restored(group(7, WRONG))
    running.restored(group(11, WRONG))
    assert positions(running, 4) == [4, 8, 10, 12]
    assert running.next() == (13, Task("t1", "?", "1"))


def test_what_was_put_aside_comes_again_first_and_once():
    running = stream(next_index=6, outstanding=[4])
    running.again([5, 2, 4, 7])
    assert positions(running, 6) == [2, 4, 5, 6, 7, 8]


def test_solved_tasks_of_a_finite_source_are_retired_until_all_are():
    running = stream()
    running.arrived(group(0, RIGHT, WRONG))
    running.arrived(group(1, RIGHT, WRONG, WRONG))
    running.arrived(group(2, RIGHT, BROKEN))
    assert running.retired == {"t0", "t2"}, "half are enough, and what the verifier broke on does not count"
    assert positions(running, 2) == [1, 4]
    running.arrived(group(1, RIGHT))
    assert running.next()[1].id in {"t0", "t1", "t2"} and running.retired == set(), "starting over"


def test_after_steps_that_no_checkpoint_holds_it_goes_on_behind_them():
    ahead, passed_over = stream(next_index=2), stream(next_index=2)
    for running in (ahead, passed_over):
        for index in (2, 5):
            running.restored(group(index, WRONG))
    ahead.continue_after_journaled(sampled_ahead=True)
    passed_over.continue_after_journaled(sampled_ahead=False)
    assert positions(ahead, 3) == [3, 4, 6]
    assert positions(passed_over, 2) == [6, 7]


def test_its_state_counts_what_is_under_way_as_outstanding():
    running = stream(next_index=6, outstanding=[5], retired={"t1"})
    assert running.state(waiting=[4, 2]) == {
        "next_index": 6,
        "outstanding": [2, 4, 5],
        "retired": ["t1"],
        "curriculum": {},
    }
