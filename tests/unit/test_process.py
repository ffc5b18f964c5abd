"""Where the output of a run's processes goes, and that they end with their parent; with real processes."""

import os
import signal
import subprocess
import sys
import time

import psutil

PRINTS = """
import ctypes, faulthandler, sys
from pathlib import Path
from rollouts.process import redirect_output
print("before")
redirect_output(Path(sys.argv[1]))
faulthandler.enable()
print("from Python")
ctypes.CDLL(None).puts(b"from C")
ctypes.CDLL(None).fflush(None)
ctypes.string_at(0)  # a native crash
"""

PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
time.sleep(300)
"""

CHILD = """
import time
from rollouts.process import die_with_parent
die_with_parent()
time.sleep(300)
"""


def test_what_a_process_prints_and_how_it_crashes_is_in_its_file(tmp_path):
    file = tmp_path / "logs" / "learner.log"
    for _ in range(2):  # started anew, it goes on writing
        done = subprocess.run([sys.executable, "-c", PRINTS, str(file)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGSEGV and done.stdout == "before\n" and not done.stderr
    text = file.read_text()
    for line in ("from Python", "from C", "Segmentation fault"):
        assert text.count(line) == 2


def test_a_process_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 60
        while child.num_threads() < 2:  # until it watches
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGKILL)
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
