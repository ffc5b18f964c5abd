"""The pool with real processes: deadlines, memory, kills, prints, forks, threads, a killed parent."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers import VerifierPool
from verifiers.adapters import for_trl, for_verl, from_trl, from_verl
from verifiers.audit import validate
from verifiers.base import Verifier
from verifiers.corpora import NAMES, load_corpus
from verifiers.math import MathVerifier

TASK = Task("t", "", "84")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    end = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def misbehave(completion: str, task: Task):
    """A plug-in that does what the completion says."""
    if completion == "loop":
        while True:
            pass
    if completion == "c loop":
        return 7**80_000_000 > 2
    if completion == "sleep":
        time.sleep(60)
    if completion == "ignore the alarm":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        while True:
            pass
    if completion == "raise":
        raise ValueError("boo")
    if completion == "sys.exit":
        sys.exit(3)
    if completion == "exit":
        os._exit(3)
    if completion == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if completion == "memory":
        return len(bytearray(10**11)) > 0
    if completion == "print":
        print("noise" * 100)
        os.write(1, b"more noise")
    if completion == "fork":
        if os.fork() == 0:
            time.sleep(60)
        return True
    if completion == "fork and return":
        os.fork()
        return True
    if completion == "nonsense":
        return object()
    if completion == "nan":
        return float("nan")
    if completion == "mask":
        return None
    return completion == "84"


async def judge(completion: str, task: Task) -> bool:
    await asyncio.sleep(60 if completion == "late" else 0)
    return completion == "84"


def test_async_calls_have_deadlines_of_their_own() -> None:
    with VerifierPool(judge, timeout_s=0.3) as pool:
        found = pool.verify_group(["84", "late", "85"], TASK)
    assert [v.status for v in found] == ["correct", "error", "wrong"]
    assert found[1].detail == "the verifier did not answer within 0.3 s"


class Whole(Verifier):
    """A group verifier that returns what the first completion says."""

    def verify_group(self, completions, task):
        return {"none": None, "short": [], "bools": [c == "84" for c in completions]}[completions[0]]


def test_what_a_group_verifier_returns_is_checked() -> None:
    with VerifierPool(Whole()) as pool:
        (pid,) = pool.pids
        for nonsense in ("none", "short"):
            found = pool.verify_group([nonsense, "84"], TASK)
            assert [v.status for v in found] == ["error"] * 2 and "expected 2 outcomes" in found[0].detail
        assert [v.reward for v in pool.verify_group(["bools", "84"], TASK)] == [0.0, 1.0]
        assert pool.pids == [pid]  # nothing died of it


def test_files_beside_the_user_are_not_imported_for_the_standard_library(tmp_path, monkeypatch) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('not the one you want')\n")
    monkeypatch.chdir(tmp_path)
    with VerifierPool("math") as pool:
        assert pool.verify_group(["84"], TASK)[0].is_correct


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(misbehave, timeout_s=0.7, memory_mib=512) as running:
        yield running


EXPECTED = {
    "loop": ("error", "no verdict within 0.7 s"),
    "c loop": ("error", "no verdict within 0.7 s"),
    "sleep": ("error", "no verdict within 0.7 s"),
    "ignore the alarm": ("error", "no verdict within 0.7 s"),
    "raise": ("error", "ValueError: boo"),
    "sys.exit": ("error", "SystemExit: 3"),
    "exit": ("error", "died: exit code 3"),
    "crash": ("error", "died: signal SIGSEGV"),
    "memory": ("error", "ran out of its"),
    "nonsense": ("error", "expected bool, float, Verdict or None"),
    "nan": ("error", "not a finite reward"),
    "print": ("wrong", ""),
    "fork": ("correct", ""),
    "fork and return": ("correct", ""),
    "mask": ("masked", ""),
}


@pytest.mark.parametrize("what", EXPECTED)
def test_one_bad_item_leaves_the_others_alone(pool: VerifierPool, what: str) -> None:
    begun = time.monotonic()
    before, bad, after = pool.verify_group(["84", what, "84"], TASK)
    assert time.monotonic() - begun < 60
    assert before.is_correct and after.is_correct
    status, detail = EXPECTED[what]
    assert bad.status == status and detail in bad.detail
    if "no verdict" in detail:
        assert bad.seconds < 0.7 + 5.0  # within 1 s on an idle machine


def test_queueing_is_no_timeout() -> None:
    def slow(completion: str, task: Task) -> bool:
        time.sleep(0.15)
        return True

    with VerifierPool(slow, workers=1, timeout_s=0.6) as pool:
        futures = [pool.submit_group(["a", "b"], TASK) for _ in range(4)]
        assert all(v.is_correct for f in futures for v in f.result())


def test_busy_answers_time_out_waiting_ones_are_errors() -> None:
    class Judge:
        timeout_is_answer = True

        def verify(self, completion: str, task: Task) -> bool:
            if completion == "sleep":
                time.sleep(60)
            while True:
                pass

    with VerifierPool(Judge, timeout_s=0.8) as pool:
        busy, waiting = pool.verify_group(["busy", "sleep"], TASK)
    assert waiting.status == "error"
    assert busy.status in ("timeout", "error")  # error only where the machine gave it less than half a core


def corpus_slice() -> list[tuple[str, Task]]:
    """Every fifteenth case of the corpora."""
    cases = [case for name in NAMES for case in load_corpus(name)]
    return [(case.pred, case.task) for case in cases[::15]]


def outcomes(verdicts: list[Verdict]) -> list[list]:
    """What must not depend on who asks."""
    return [[v.status, v.reward, v.extracted, v.detail] for v in verdicts]


def test_math_in_every_kind_of_caller() -> None:
    pairs = corpus_slice()
    here = MathVerifier()
    want = outcomes([here.verify(completion, task) for completion, task in pairs])
    assert {status for status, *_ in want} >= {"correct", "wrong", "unparsed"}
    with VerifierPool("math", workers=2) as math:
        found = [outcomes(math.submit_pairs(pairs).result())]

        def in_thread() -> None:
            found.append(outcomes([here.verify(completion, task) for completion, task in pairs]))
            found.append(outcomes(math.submit_pairs(pairs).result()))

        threads = [threading.Thread(target=in_thread) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def in_loop() -> list[list]:
            futures = [math.submit_pairs(pairs) for _ in range(2)]
            return list(map(outcomes, await asyncio.gather(*map(asyncio.wrap_future, futures))))

        found += asyncio.run(in_loop())
        assert len(found) == 9 and all(one == want for one in found)
        assert math.answer_keys([r"\boxed{1/2}", r"\boxed{0.5}", "?"], TASK) == ["1/2", "1/2", None]


def test_a_verifier_may_run_in_the_calling_process() -> None:
    seen: list[int] = []

    def judge(completion: str, task: Task):
        seen.append(os.getpid())
        if completion == "raise":
            raise ValueError("boo")
        return None if completion == "mask" else completion == "84"

    judge.in_process = True  # type: ignore[attr-defined]
    with VerifierPool(judge, workers=2) as pool:
        verdicts = pool.verify_group(["84", "raise", "85", "mask"], TASK)
        assert pool.pids == []
    assert [v.status for v in verdicts] == ["correct", "error", "wrong", "masked"]
    assert "ValueError: boo" in verdicts[1].detail and verdicts[0].seconds > 0
    assert set(seen) == {os.getpid()}


def test_what_cannot_run_is_a_usage_error() -> None:
    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        VerifierPool(lambda completion, task: lock.locked())
    with pytest.raises(UsageError, match="at least 1 worker"):
        VerifierPool("math", workers=0)
    with pytest.raises(UsageError, match="positive number of seconds"):
        VerifierPool("math", timeout_s=0)


def test_close_leaves_nothing_behind() -> None:
    pool = VerifierPool(misbehave, workers=2, timeout_s=5)
    pids = pool.pids
    assert len(pids) == 2 and all(map(alive, pids))
    pool.close()
    pool.close()
    assert gone(pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit_group(["84"], TASK)


def test_leaving_by_an_exception_drops_what_is_queued() -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with VerifierPool(misbehave, timeout_s=60) as pool:
            pids = pool.pids
            futures = [pool.submit_group(["sleep"], TASK) for _ in range(5)]
            time.sleep(0.3)
            raise KeyboardInterrupt
    assert time.monotonic() - begun < 50
    assert gone(pids)
    assert all(future.done() for future in futures)


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, subprocess, sys, time
        from reasoner.types import Task
        from verifiers import VerifierPool

        def spin(completion, task):
            if os.fork() == 0:
                while True: time.sleep(1)
            while True: pass

        pool = VerifierPool(spin, workers=2, timeout_s=300)
        for _ in range(2): pool.submit_group(["x"], Task("t", "", "1"))
        time.sleep(1.0)
        seen, waiting = [], [os.getpid()]
        while waiting:
            out = subprocess.run(["pgrep", "-P", str(waiting.pop())], capture_output=True, text=True).stdout
            waiting += map(int, out.split()); seen += map(int, out.split())
        print(*seen, flush=True)
        time.sleep(300)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    workers = [p for p in pids if alive(p)]
    assert len(workers) >= 4  # two workers and what each forked
    parent.kill()
    parent.wait()
    assert gone(workers, within_s=10)


def test_a_worker_that_dies_while_idle_is_replaced() -> None:
    with VerifierPool(misbehave, timeout_s=5) as pool:
        assert pool.verify_group(["84"], TASK)[0].is_correct
        os.kill(pool.pids[0], signal.SIGKILL)
        assert gone(pool.pids)
        assert pool.verify_group(["84"], TASK)[0].is_correct


def test_an_item_whose_process_somebody_killed_is_tried_once_more(tmp_path) -> None:
    tries = tmp_path / "tries"

    def killed(completion: str, task: Task) -> bool:
        if completion != "84":
            with tries.open("a") as said:
                said.write(completion)
            if completion == "always" or tries.read_text().count(completion) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return True

    with VerifierPool(killed) as pool:
        statuses = [v.status for v in pool.verify_group(["84", "once", "always", "84", "twice"], TASK)]
    assert statuses == ["correct", "correct", "error", "correct", "correct"]
    assert tries.read_text() == "onceonce" + "alwaysalways" + "twicetwice"


def test_a_worker_that_reads_nothing_does_not_hold_its_caller(monkeypatch) -> None:
    monkeypatch.setattr("verifiers.process.SEND_TIMEOUT_S", 1)
    with VerifierPool("math", workers=1) as pool:
        assert pool.verify_group(["\\boxed{84}"], TASK)[0].is_correct
        os.kill(pool.pids[0], signal.SIGSTOP)
        (verdict,) = pool.verify_group(["x" * 4_000_000 + "\\boxed{84}"], TASK)  # more than the socket holds
        assert verdict.is_correct


def test_validate_finds_bad_tasks_and_careless_verifiers() -> None:
    tasks = [Task("good", "", "84"), Task("bad", "", r"\frac{1}{"), Task("list", "", ("1", "2"))]
    found = validate(tasks)
    assert [(f.task_id, f.kind) for f in found.findings][0] == ("bad", "bad reference")
    assert {f.task_id for f in found.findings} == {"bad"}

    def careless(completion: str, task: Task) -> bool:
        return True

    careless_findings = validate([tasks[0]], careless).findings
    assert {f.kind for f in careless_findings} == {"perturbed accepted"}


def test_adapters_both_ways() -> None:
    with VerifierPool("math") as pool:
        reward = for_trl(pool)
        chat = [{"role": "assistant", "content": r"\boxed{84}"}]
        rewards = reward(prompts=["?", "?"], completions=[chat, r"\boxed{85}"], answer=["84", "84"])
        assert rewards == [1.0, 0.0]
        assert for_verl(pool)("math", r"\boxed{84}", "84") == 1.0
        with pytest.raises(KeyError, match="answer"):
            reward(completions=["x"])

    def trl_function(completions, answer, **columns):
        return [1.0 if a in c else None for c, a in zip(completions, answer, strict=True)]

    verdicts = from_trl(trl_function).verify_group(["84!", "no"], TASK)
    assert [v.status for v in verdicts] == ["correct", "masked"]
    assert from_verl(lambda **given: {"score": 0.5}).verify("x", TASK).reward == 0.5


RAY_SCRIPT = """
import json, os, pickle, signal, sys
import ray

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


@ray.remote
class Grader:
    def __init__(self):
        from verifiers import VerifierPool

        self.pool = VerifierPool("math", workers=2)

    def grade(self, pairs):
        found = self.pool.submit_pairs(pairs).result()
        return [[v.status, v.reward, v.extracted, v.detail] for v in found]

    def pids(self):
        return [os.getpid(), *self.pool.pids]


pairs = pickle.load(open(sys.argv[1], "rb"))
graders = [Grader.remote() for _ in range(2)]
verdicts = ray.get(graders[0].grade.remote(pairs))
pids = [ray.get(g.pids.remote()) for g in graders]
busy = [g.grade.remote(pairs * 50) for g in graders]
assert not ray.wait(busy, timeout=0.5)[0], "the graders should be at full load"
os.kill(pids[0][0], signal.SIGKILL)
print(json.dumps([verdicts, pids]))
"""


@pytest.mark.slow
def test_in_ray_workers_at_full_load(tmp_path: Path) -> None:
    """The same verdicts as anywhere; and no verifier process is left of a Ray worker that is killed (the
    first), nor of one that is at work when the run ends (the second)."""
    pytest.importorskip("ray")
    pairs = corpus_slice()
    (tmp_path / "pairs").write_bytes(pickle.dumps(pairs))
    done = subprocess.run(
        [sys.executable, "-c", RAY_SCRIPT, str(tmp_path / "pairs")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts, pids = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    here = MathVerifier()
    assert verdicts == outcomes([here.verify(completion, task) for completion, task in pairs])
    assert [len(own) for own in pids] == [3, 3]
    assert gone([pid for own in pids for pid in own], within_s=15)


def test_verdicts_carry_seconds() -> None:
    with VerifierPool("math") as pool:
        verdict = pool.verify_group([r"\boxed{84}"], TASK)[0]
    assert isinstance(verdict, Verdict) and 0 < verdict.seconds < 5
