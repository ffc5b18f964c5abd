import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from reasoner.errors import ReasonerError
from reasoner.journal import Journal, Use
from reasoner.rollout_files import groups_of, read_table, step_path, step_paths
from reasoner.types import Group, Rollout, SamplingParams, Task, Verdict

SAMPLING = SamplingParams(max_tokens=64, temperature=1.0)


def make_rollout(task: Task, seed: int, version: int = 0, verdict: Verdict | None = None) -> Rollout:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(4, 12))
    mask = np.arange(length) >= 3
    return Rollout(
        task=task,
        token_ids=rng.integers(0, 300, length).astype(np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -rng.random(length), 0).astype(np.float32),
        policy_version=np.where(mask, version, -1).astype(np.int32),
        completion=f"{seed}=é\n\\boxed{{{seed}}}",
        terminated=True,
        truncated=False,
        verdict=verdict or Verdict("correct", 1.0, str(seed), "fine", 0.001),
    )


def make_group(index: int, size: int = 2, version: int = 0, **task_fields) -> Group:
    task = Task(f"t{index}", f"{index}+1", str(index + 1), "chain", 1.0, {"seed": index, **task_fields})
    return Group(task, tuple(make_rollout(task, 100 * index + i, version) for i in range(size)), index)


def assert_same(actual: list[Group], expected: list[Group]) -> None:
    assert [g.index for g in actual] == [g.index for g in expected]
    for a, e in zip(actual, expected, strict=True):
        assert a.task == e.task
        for ra, re in zip(a.rollouts, e.rollouts, strict=True):
            for field in ("token_ids", "action_mask", "behaviour_logprobs", "policy_version"):
                x, y = getattr(ra, field), getattr(re, field)
                assert x.dtype == y.dtype and np.array_equal(x, y), field
            assert (ra.completion, ra.verdict, ra.terminated, ra.truncated) == (
                re.completion,
                re.verdict,
                re.terminated,
                re.truncated,
            )


def uses_of(groups: list[Group]) -> list[Use]:
    pairs = [(g, i) for g in groups for i in range(len(g.rollouts))]
    return [
        Use(g.index, i, position, 0.5 - i, g.rollouts[i].behaviour_logprobs + np.float32(0.25))
        for position, (g, i) in enumerate(pairs)
    ]


def test_groups_survive_exactly_until_a_step_uses_them(tmp_path):
    groups = [make_group(i) for i in (3, 1, 2)]
    with Journal(tmp_path) as journal:
        journal.append_groups(0, groups[:2], SAMPLING)
        journal.append_groups(None, groups[2:], {"max_tokens": 9})
    with Journal(tmp_path) as journal:
        assert_same(journal.unused_groups(), [groups[1], groups[2], groups[0]])
        journal.mark_used(1, uses_of([groups[0]]))
        journal.mark_dropped(1, [2], "filtered")
        assert_same(journal.unused_groups(), [groups[1]])


def test_discarded_groups_are_kept_aside_and_their_indices_are_free(tmp_path):
    groups = [make_group(i) for i in (1, 2, 3)]
    with Journal(tmp_path) as journal:
        journal.append_groups(None, groups, SAMPLING)
        journal.mark_dropped(1, [3], "filtered")
        journal.discard([1, 3], "unjudged")  # 3 belongs to a step
        assert_same(journal.unused_groups(), [groups[1]])
        journal.append_groups(None, [make_group(1)], SAMPLING)
        journal.discard([1], "unjudged")
    aside = sorted((tmp_path / "rollouts" / "discarded").iterdir())
    assert [path.name for path in aside] == ["unjudged.0.parquet", "unjudged.1.parquet"]
    assert_same(groups_of(read_table(aside[0])), [groups[0]])


def test_messages_references_and_missing_verdicts_round_trip(tmp_path):
    task = Task("m", ({"role": "user", "content": "1/2?"},), ("1/2", "0.5"), metadata={"a": [1, {"b": None}]})
    masked = make_rollout(task, 1, verdict=Verdict("masked", None))
    unverified = Rollout(
        **{**make_rollout(task, 2).__dict__, "verdict": None, "terminated": False, "truncated": True}
    )
    group = Group(task, (masked, unverified), 5)
    with Journal(tmp_path) as journal:
        journal.append_groups(None, [group], SAMPLING)
        assert_same(journal.unused_groups(), [group])


def test_compacted_step_is_readable_by_duckdb_while_the_run_goes_on(tmp_path):
    groups = [make_group(i, version=2) for i in range(4)]
    with Journal(tmp_path) as journal:
        journal.append_groups(2, groups, SAMPLING)
        journal.mark_used(3, uses_of(groups[:2]))
        journal.mark_dropped(3, [2], "filtered")
        journal.compact(3).result()
        assert_same(journal.unused_groups(), [groups[3]])
        rows = duckdb.sql(
            f"""SELECT group_index, rollout, fate, position, advantage, len(prompt_ids), prompt, reward,
                len(token_ids) = len(learner_logprobs), sampling->>'max_tokens' AS budget,
                list_max(policy_version)
                FROM '{tmp_path}/rollouts/step_*.parquet' ORDER BY group_index, rollout"""
        ).fetchall()
        assert rows[1] == (0, 1, "trained", 1, -0.5, 3, "0+1", 1.0, True, "64", 2)
        assert rows[4] == (2, 0, "filtered", None, None, 3, "2+1", 1.0, None, "64", 2)
        assert len(rows) == 6
    table = read_table(step_path(tmp_path, 3))
    assert_same(groups_of(table), groups[:3])
    learner = np.array(table["learner_logprobs"][0].as_py(), np.float32)
    assert np.array_equal(learner, groups[0].rollouts[0].behaviour_logprobs + np.float32(0.25))


def test_a_second_compaction_of_a_step_adds_to_its_file(tmp_path):
    groups = [make_group(i) for i in range(2)]
    with Journal(tmp_path) as journal:
        journal.append_groups(0, groups, SAMPLING)
        journal.mark_used(1, uses_of(groups[:1]))
        journal.compact(1).result()
        journal.mark_dropped(1, [1], "stale")
        journal.compact(1).result()
        assert_same(groups_of(read_table(step_path(tmp_path, 1))), groups)


def test_a_group_is_accepted_once_and_used_once(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append_groups(0, [make_group(1)], SAMPLING)
        with pytest.raises(ValueError, match="journaled already"):
            journal.append_groups(0, [make_group(2), make_group(1)], SAMPLING)
        assert [g.index for g in journal.unused_groups()] == [1]
        journal.mark_dropped(1, [1], "stale")
        for index in (1, 7):
            with pytest.raises(ValueError, match=f"group {index} is not in the journal"):
                journal.mark_dropped(2, [index], "stale")


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with Journal(tmp_path) as journal:
        with pytest.raises(ValueError, match="task t2: metadata must hold JSON types"):
            journal.append_groups(0, [make_group(1), make_group(2, bad=object())], SAMPLING)
        assert journal.unused_groups() == []


def train_steps(journal: Journal, steps: range) -> dict[int, list[Group]]:
    """Synchronous training: step s uses groups 10 s and 10 s + 1, sampled by version s - 1."""
    by_step = {}
    for step in steps:
        by_step[step] = [make_group(10 * step + i, version=step - 1) for i in range(2)]
        journal.append_groups(step - 1, by_step[step], SAMPLING)
        journal.mark_used(step, uses_of(by_step[step]))
        journal.compact(step)
    return by_step


@pytest.mark.parametrize("crash", ["none", "before compaction", "twice"])
def test_resume_makes_later_uses_unused_and_sets_lost_policies_aside(tmp_path, crash):
    journal = Journal(tmp_path)
    by_step = train_steps(journal, range(1, 5))
    extra = make_group(99, version=2)
    journal.append_groups(4, [extra], SAMPLING)
    if crash == "before compaction":
        step5 = [make_group(50, version=1), make_group(51, version=4)]
        journal.append_groups(4, step5, SAMPLING)
        journal.mark_used(5, uses_of(step5))
    journal.close()
    for _ in range(2 if crash == "twice" else 1):
        journal = Journal(tmp_path)
        unused = journal.resume(step=2, policy_version=2)
        journal.close()
    # Step 3 was sampled by version 2, the policy of the checkpoint; step 4 by version 3, which is lost.
    expected = [*by_step[3], extra]
    if crash == "before compaction":
        expected.insert(2, step5[0])
    assert_same(unused, expected)
    assert sorted(step_paths(tmp_path)) == [1, 2]
    discarded = sorted(p.name for p in (tmp_path / "rollouts/discarded").iterdir())
    lost = ["after_step_000002.0.parquet"] if crash == "before compaction" else []
    assert discarded == [*lost, "step_000003.0.parquet", "step_000004.0.parquet"]
    with Journal(tmp_path) as journal:
        train_steps(journal, range(4, 5))
        journal.mark_used(3, uses_of(by_step[3]))


def test_resume_finishes_the_compaction_of_earlier_steps(tmp_path):
    with Journal(tmp_path) as journal:
        groups = [make_group(1), make_group(2)]
        journal.append_groups(0, groups, SAMPLING)
        journal.mark_used(1, uses_of(groups))
    assert step_paths(tmp_path) == {}
    with Journal(tmp_path) as journal:
        assert journal.resume(1, 1) == []
    assert_same(groups_of(read_table(step_path(tmp_path, 1))), groups)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import SAMPLING, make_group
from reasoner.journal import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(100_000):
    journal.append_groups(0, [make_group(2 * i), make_group(2 * i + 1)], SAMPLING)
    print(2 * i + 1, flush=True)
"""


def test_kill_9_loses_no_group_that_was_accepted(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    accepted = [int(process.stdout.readline()) for _ in range(5)][-1]
    process.send_signal(signal.SIGKILL)
    accepted = max([accepted, *(int(line) for line in process.stdout.read().splitlines())])
    process.wait()
    with Journal(tmp_path) as journal:
        found = journal.unused_groups()
    assert len(found) % 2 == 0, "half a batch"
    assert len(found) >= accepted + 1
    assert_same(found, [make_group(i) for i in range(len(found))])


def test_a_full_disk_is_one_clear_error_and_corrupts_nothing(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append_groups(0, [make_group(0)], SAMPLING)
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        with pytest.raises(
            ReasonerError, match=r"journal\.sqlite: database or disk is full; free some space"
        ):
            journal.append_groups(0, [make_group(i, size=16) for i in range(1, 20)], SAMPLING)
        assert_same(journal.unused_groups(), [make_group(0)])
        journal._db.execute("PRAGMA max_page_count = 100000").fetchall()
        journal.append_groups(0, [make_group(1)], SAMPLING)
    with Journal(tmp_path) as journal:
        assert_same(journal.unused_groups(), [make_group(0), make_group(1)])


LIMITED = """
import signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import SAMPLING, make_group
from reasoner.errors import ReasonerError
from reasoner.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal, i = Journal(Path(sys.argv[1])), 0
try:
    while True:
        journal.append_groups(0, [make_group(i)], SAMPLING)
        i += 1
except ReasonerError as error:
    print(i, error)
"""


def test_a_write_the_system_refuses_is_one_clear_error(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    out = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=60,
    )
    count, message = out.stdout.split(" ", 1)
    assert message.startswith(f"cannot write {tmp_path}/rollouts/journal.sqlite"), out
    with Journal(tmp_path) as journal:
        assert_same(journal.unused_groups(), [make_group(i) for i in range(int(count))])


def test_an_error_of_the_background_thread_is_raised_by_the_next_call(tmp_path):
    with pytest.raises(ReasonerError, match=r"step_000001\.parquet"):
        with Journal(tmp_path) as journal:
            groups = [make_group(1)]
            journal.append_groups(0, groups, SAMPLING)
            journal.mark_used(1, uses_of(groups))
            (step_path(tmp_path, 1)).mkdir()
            journal.compact(1).exception()
            journal.unused_groups()
    step_path(tmp_path, 1).rmdir()
    with Journal(tmp_path) as journal:
        assert journal.resume(1, 1) == []
    assert_same(groups_of(read_table(step_path(tmp_path, 1))), groups)


def test_a_file_that_is_no_journal_is_named(tmp_path):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "journal.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ReasonerError, match=r"journal\.sqlite is not a readable journal"):
        Journal(tmp_path)


def test_others_read_the_log_while_it_is_written(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append_groups(0, [make_group(0)], SAMPLING)
        reader = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True)
        journal.append_groups(0, [make_group(1)], SAMPLING)
        assert reader.execute("SELECT count(*) FROM groups").fetchone() == (2,)
        reader.close()
