"""`reasoner` with hooks for faults that nobody can cause from outside: python faulty.py ARGUMENTS...

A file in the directory `CHAOS_DIR` pulls the trigger:
- `nan`: the sampler gives NaN as logprobs of a group, and its update has a NaN loss;
- `clock`: the wall clock jumps a day ahead;
- `disk`: no room for the journal while the file is there;
- `checkpoint`: no room for more than a beginning of the learner's files.
Servers and a learner that do not answer are given up after seconds instead of a minute and a half, so that
tests are short.
"""

import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from reasoner import cli, heartbeat, processes
from reasoner.journal import Journal
from rollouts import fleet
from rollouts.dispatch import Dispatcher

TRIGGERS = Path(os.environ["CHAOS_DIR"])
DAY_S = 86400.0
ROOM_BYTES = 64 * 1024

fleet.HEARTBEAT_S, fleet.SUSPECT_AFTER_S, fleet.DEAD_AFTER_S = 1.0, 5.0, 12.0
heartbeat.HEARTBEAT_S, heartbeat.SILENT_AFTER_S = 1.0, 15.0

real_time, real_finished, real_append = time.time, Dispatcher.finished, Journal.append_groups


def finished(self, *args, **kwargs):
    found = real_finished(self, *args, **kwargs)
    for results in found.values():
        for i, result in enumerate(results):
            rewards = {r.verdict.reward for r in result.group.rollouts} - {None}
            if (TRIGGERS / "nan").exists() and len(rewards) > 1:  # else it carries no signal
                (TRIGGERS / "nan").unlink()
                results[i] = replace(result, group=with_nan_logprobs(result.group))
    return found


def with_nan_logprobs(group):
    nan = [np.where(r.action_mask, np.nan, r.behaviour_logprobs).astype(np.float32) for r in group.rollouts]
    broken = (replace(r, behaviour_logprobs=n) for r, n in zip(group.rollouts, nan, strict=True))
    return replace(group, rollouts=tuple(broken))


def append_groups(self, *args):
    if (TRIGGERS / "disk").exists():
        self._db.execute("PRAGMA max_page_count = 1").fetchall()  # SQLite: no page more than there are now
        with self._transaction() as db:  # small groups might fit into what the pages have left
            db.execute("CREATE TABLE filler AS SELECT zeroblob(1 << 24)")
    real_append(self, *args)


class LearnerActor(processes.LearnerActor):
    def save(self, path):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if (TRIGGERS / "checkpoint").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, before[1]))
        try:
            super().save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


time.time = lambda: real_time() + DAY_S * (TRIGGERS / "clock").exists()
Dispatcher.finished = finished
Journal.append_groups = append_groups
processes.LearnerActor = LearnerActor

if __name__ == "__main__":
    cli.main()
