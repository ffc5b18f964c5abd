"""`reasoner` with hooks for faults that nobody can cause from outside: python faulty.py ARGUMENTS...

A file in the directory `CHAOS_DIR` pulls the trigger: `nan` (the next update has a NaN loss), `clock` (the
wall clock jumps a day ahead), `disk` (no room for the journal while the file is there). Servers are declared
dead after seconds instead of a minute and a half, so that tests are short.
"""

import os
import time
from pathlib import Path

import numpy as np

from reasoner import cli
from reasoner.journal import Journal
from reasoner.learner_client import LearnerClient
from rollouts import fleet

TRIGGERS = Path(os.environ["CHAOS_DIR"])
DAY_S = 86400.0

fleet.HEARTBEAT_S, fleet.SUSPECT_AFTER_S, fleet.DEAD_AFTER_S = 1.0, 5.0, 12.0

real_time, real_update, real_append = time.time, LearnerClient.update, Journal.append_groups


def update(self, batch, lr_scale):
    if (TRIGGERS / "nan").exists():
        (TRIGGERS / "nan").unlink()
        broken = batch.advantages.copy()
        broken[batch.action_mask] = np.nan
        batch = type(batch)(**{**vars(batch), "advantages": broken})
    return real_update(self, batch, lr_scale)


def append_groups(self, *args):
    if (TRIGGERS / "disk").exists():
        self._db.execute("PRAGMA max_page_count = 1").fetchall()  # SQLite: no page more than there are now
    real_append(self, *args)


time.time = lambda: real_time() + DAY_S * (TRIGGERS / "clock").exists()
LearnerClient.update = update
Journal.append_groups = append_groups

if __name__ == "__main__":
    cli.main()
