"""A real run that things are done to, and what has become of its rollouts."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

FLAGS = [
    "--steps=5000",
    "--rollout.groups_per_step=4",
    "--rollout.group_size=4",
    "--rollout.max_tokens=32",
    "--eval.problems=4",
    "--eval.every=0",
    "--checkpoint.every=3",
    "--server.max_num_seqs=16",
    "--server.kv_cache_gib=0.2",
]
GROUP_SIZE = 4
FAULTY = Path(__file__).parent / "faulty.py"


class Run:
    """`reasoner train` in a process group of its own, with the triggers of `faulty.py`."""

    def __init__(self, home, *args, name="k", faulty=True, **env):
        self.home, self.path = Path(home), Path(home) / "runs" / name
        self.triggers = self.home / "triggers"
        self.triggers.mkdir(exist_ok=True)
        self.faulty, self.env = faulty, {**os.environ, "CHAOS_DIR": str(self.triggers), **env}
        self.starts, self.failures = 0, []
        self.start("train", f"--name={name}", *FLAGS, *args)

    def start(self, *args):
        self.starts += 1
        self.log = self.home / f"driver_{self.starts}.log"
        program = [str(FAULTY)] if self.faulty else ["-m", "reasoner.cli"]
        self.driver = subprocess.Popen(
            [sys.executable, *program, *args],
            cwd=self.home,
            env=self.env,
            stdout=open(self.log, "w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def resume(self, more_steps=None):
        """Goes on; with `more_steps` to an end that many steps after the last recorded one."""
        end = [f"--steps={self.step() + more_steps}"] if more_steps else []
        self.start("train", "--resume", str(self.path), *end)

    # ---------------------------------------------------------------- what it has done

    def metrics(self):
        try:
            text = (self.path / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def step(self):
        return max((line["step"] for line in self.metrics()), default=-1)

    def accepted(self):
        """Indices of all groups that the journal holds and has not set aside."""
        journal = sqlite3.connect(self.path / "rollouts" / "journal.sqlite", timeout=30)
        groups = {index for (index,) in journal.execute("SELECT group_index FROM groups")}
        journal.close()
        for file in (self.path / "rollouts").glob("step_*.parquet"):
            groups |= set(pq.read_table(file, columns=["group_index"])["group_index"].to_pylist())
        return groups

    def output(self):
        return self.log.read_text() + "\n" + self.driver_log()

    def driver_log(self):
        return (self.path / "logs" / "driver.log").read_text() if self.path.exists() else ""

    def wait_for(self, condition, what, seconds=240):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.driver.poll() is None, f"the run ended before {what}:\n{self.output()}"
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}:\n{self.output()}"
            time.sleep(0.05)

    def wait_for_steps(self, count):
        target = self.step() + count
        self.wait_for(lambda: self.step() >= target, f"step {target}")

    def wait_for_log(self, pattern, count=1):
        self.wait_for(lambda: len(re.findall(pattern, self.driver_log())) >= count, f"{count} × {pattern!r}")

    def log_times(self, pattern):
        """Seconds of the lines of the driver's log that hold the pattern."""
        stamps = re.findall(rf"^(\S+ \S+) .*(?:{pattern})", self.driver_log(), re.MULTILINE)
        return [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp() for stamp in stamps]

    def restart_overhead_s(self):
        """From the first loss of a server to its serving again, beyond what its first start took."""
        first_start = self.log_times("server-0: syncing → serving")[0] - self.log_times("server-0: dead")[0]
        lost = self.log_times(r"server-\d: \w+ → dead")[0]
        back = next(t for t in self.log_times(r"server-\d: syncing → serving") if t > lost)
        return back - lost - first_start

    def end(self):
        """Its exit code; nothing that it has started is left."""
        with self.leaving_nothing():
            return self.driver.wait(timeout=120)

    def kill(self):
        """`kill -9` of the driver, which nothing survives."""
        with self.leaving_nothing():
            self.driver.kill()
            self.driver.wait()

    def replayed(self):
        """The last line of `reasoner replay`, which must not find anything to be otherwise."""
        command = [sys.executable, "-m", "reasoner.cli", "replay", str(self.path)]
        done = subprocess.run(command, cwd=self.home, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    # ---------------------------------------------------------------- its processes

    def family(self):
        try:
            return psutil.Process(self.driver.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def processes(self, word):
        """Ray actors carry their class name in their title."""
        return [p for p in self.family() if word in " ".join(_command(p))]

    def everything(self):
        return {*self.family(), *processes_in(self.home)}

    @contextmanager
    def leaving_nothing(self):
        everything = self.everything()
        yield
        left = wait_until_gone({*everything, *processes_in(self.home)})
        for process in processes_in(self.home):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert not left, f"left running: {left}"

    def close(self):
        """Ends everything, and raises what went wrong under the faults."""
        try:
            self.kill()
        except AssertionError as error:
            self.failures.append(error)
        if self.failures:
            raise ExceptionGroup(f"{len(self.failures)} faults", self.failures)


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def processes_in(folder):
    """Those whose working directory is the folder or below it, as that of all that a run starts."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process)
    return found


def wait_until_gone(processes, seconds=40):
    """Those of the processes that are still there after so long."""

    deadline = time.monotonic() + seconds
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [" ".join(_command(p))[:100] for p in processes if _alive(p)]


def _alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # just now
        return False


class Fault:
    """What is known of one fault: when it struck, what was safe before."""

    def __init__(self, run):
        self.run, self.before = run, run.accepted()
        self.began, self.recovered_s = time.monotonic(), None

    def training_goes_on(self):
        """Called when the fault has struck: waits for two more steps, the first may have been under way."""
        self.run.wait_for_steps(2)
        self.mark()

    def mark(self):
        self.recovered_s = time.monotonic() - self.began

    @property
    def lost(self):
        try:
            left = self.run.accepted()
        except (sqlite3.Error, OSError, pa.ArrowException):
            left = set()  # what cannot be read is lost
        return GROUP_SIZE * len(self.before - left)


@contextmanager
def chaos(name, run, show):
    """One fault, and its line: `chaos NAME ok|FAILED lost=N recovered_s=S`. After one that failed the others
    are still tried; `Run.close` raises."""
    fault, verdict = Fault(run), "FAILED"
    try:
        yield fault
        assert fault.lost == 0, f"{fault.lost} accepted rollouts are lost"
        assert fault.recovered_s is not None
        verdict = "ok"
    except Exception as error:
        run.failures.append(error)
    finally:
        recovered = "nan" if fault.recovered_s is None else f"{fault.recovered_s:.1f}"
        show(f"chaos {name} {verdict} lost={fault.lost} recovered_s={recovered}")
