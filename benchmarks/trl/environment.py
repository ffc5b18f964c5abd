"""TRL in an environment of its own that shares every library but TRL with this one.

    python -m benchmarks.trl.environment        # prints its interpreter; made on first use

A `.pth` file adds this environment's packages behind the other one's: both sides of a comparison then use
the same torch and transformers. Nothing is installed into the present environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

INSTALL_S = 3600.0
ROOT = Path(__file__).parents[2]
HOME = ROOT / ".bench" / "trl"
LOCK = ROOT / "requirements" / "trl.lock"


def interpreter() -> Path:
    """The interpreter of TRL's environment, which is made when it is missing or the lock has changed.

    REASONER_BENCH_TRL names an interpreter to use instead."""
    if given := os.environ.get("REASONER_BENCH_TRL"):
        return Path(given)
    python, stamp = HOME / "bin" / "python", HOME / "installed.lock"
    if stamp.is_file() and stamp.read_text() == LOCK.read_text():
        return python
    venv.create(HOME, with_pip=True, clear=True)
    installed = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(LOCK)]
    subprocess.run(installed, check=True, timeout=INSTALL_S)
    packages = next((HOME / "lib").glob("python*/site-packages"))
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    stamp.write_text(LOCK.read_text())
    return python


def variables(threads: int) -> dict[str, str]:
    """The process environment of either side: the same threads, this checkout's modules, no network."""
    here = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **here, "OMP_NUM_THREADS": str(threads), "TRL_EXPERIMENTAL_SILENCE": "1"}


if __name__ == "__main__":
    print(interpreter())
    subprocess.run(
        [str(interpreter()), "-c", "import trl, torch; print(trl.__version__, torch.__version__)"],
        check=True,
        stderr=sys.stderr,
    )
