"""kill -9 and worse, done to parts of real runs: they go on, or resume, and no accepted rollout is lost.

`make chaos` runs everything and prints a line a fault; `make test` leaves out what is marked `long`. Several
faults are done to one run where that is honest: a start costs more than most of them.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from harness import Run, chaos, wait_until_gone

from reasoner.checkpoint import CheckpointStore
from reasoner.models import embedded_path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from test_http_server import ROOT, documented_command, free_port, wait_for_health

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def start(tmp_path):
    runs = []

    def start_run(*args, **kwargs):
        runs.append(Run(tmp_path, *args, **kwargs))
        return runs[-1]

    yield start_run
    for run in runs:
        run.close()


PARTS = {
    "server": "VLLMServer",
    "worker": "WorkerActor",
    "verifier": "verifiers.worker",
    "learner": "LearnerActor",
}


def kill(processes):
    processes[0].send_signal(signal.SIGKILL)


def kill_parts(run, show, *names, prefix=""):
    """One after the other, of a run with two servers."""
    for name in names:
        with chaos(f"{prefix}{name}", run, show) as fault:
            kill(run.processes(PARTS[name]))
            fault.training_goes_on()
            if name == "server":
                run.wait_for_log(r"server-\d: syncing → serving", count=3)  # it comes back, refitted
            if name == "learner":
                assert "updates to redo" in run.output()


def kill_driver(run, show, name):
    with chaos(name, run, show) as fault:
        assert len(run.everything()) > 5
        run.kill()
        run.resume()
        fault.training_goes_on()


def check_nothing_has_happened(run):
    steps = [line["step"] for line in run.metrics()]
    assert steps == list(range(len(steps))), "no step is missing or doubled"
    assert run.replayed() == "reproduced, bit for bit"


def test_a_run_outlives_its_parts(start, show):
    run = start("--server.replicas=2")
    run.wait_for_steps(4)

    kill_parts(run, show, "server", "worker", "verifier", "learner")

    with chaos("silent_server", run, show) as fault:
        silent = run.processes("VLLMServer")[0]
        silent.send_signal(signal.SIGSTOP)
        run.wait_for_log("it has not answered for")
        fault.training_goes_on()
        assert not wait_until_gone([silent])

    with chaos("nan_loss", run, show) as fault:
        (run.triggers / "nan").touch()
        fault.training_goes_on()
        run.wait_for(lambda: run.metrics()[-1].get("skipped_updates") == 1, "one skipped update")

    with chaos("clock_jump", run, show) as fault:
        (run.triggers / "clock").touch()
        fault.training_goes_on()
        assert all(0 <= line["seconds"]["total"] < 600 for line in run.metrics())

    with chaos("sigterm", run, show) as fault:
        run.driver.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.output()
        run.resume(more_steps=2)
        assert run.end() == 0, run.output()
        fault.mark()
    check_nothing_has_happened(run)


def test_a_killed_driver_and_damaged_checkpoints(start, show):
    run = start()
    run.wait_for_steps(6)
    kill_driver(run, show, "driver")

    with chaos("truncated_checkpoint", run, show) as fault:
        run.wait_for_steps(4)
        run.kill()
        newest = CheckpointStore(run.path).latest()
        weights = newest / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        run.resume(more_steps=2)
        assert run.end() == 0, run.output()
        fault.mark()
    check_nothing_has_happened(run)


@pytest.mark.long
def test_an_asynchronous_run_outlives_its_parts_and_its_driver(start, show):
    run = start("--server.replicas=2", "--max_staleness=2")
    run.wait_for_steps(4)
    kill_parts(run, show, "server", "worker", "learner", prefix="async_")
    kill_driver(run, show, "async_driver")
    run.driver.send_signal(signal.SIGTERM)
    assert run.end() == 130, run.output()
    assert 0 < max(line["staleness_max"] or 0 for line in run.metrics()) <= 2
    check_nothing_has_happened(run)


@pytest.mark.long
def test_the_only_server_dies_and_the_learner_hangs(start, show):
    run = start()
    run.wait_for_steps(2)
    with chaos("only_server", run, show) as fault:
        kill(run.processes("VLLMServer"))
        fault.training_goes_on()
    show(f"figure server_restart_overhead_s {run.restart_overhead_s():.1f} s")
    assert run.restart_overhead_s() < 5

    with chaos("silent_learner", run, show) as fault:
        silent = run.processes("LearnerActor")[0]
        silent.send_signal(signal.SIGSTOP)
        run.wait_for(lambda: "the learner hangs" in run.output(), "its silence noticed")
        fault.training_goes_on()
        assert not wait_until_gone([silent])


@pytest.mark.long
def test_a_rank_of_the_learner_dies(start, show):
    run = start("--learner.ranks=2")
    run.wait_for_steps(4)
    with chaos("learner_rank", run, show) as fault:
        ranks = run.processes("LearnerActor")
        assert len(ranks) == 2
        kill(ranks[::-1])  # one that the loop does not know
        fault.training_goes_on()
    run.kill()
    assert run.replayed() == "reproduced, within the tolerance", "a replay has one rank"


@pytest.mark.long
def test_the_engine_child_of_an_external_server_dies(start, show, tmp_path):
    """Its server ends with it; whoever runs it starts it again, and the run, which has waited, goes on."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment, command = documented_command(str(embedded_path()), port)
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"

    def serve():
        log = tmp_path / "server.log"
        server = subprocess.Popen(
            [*command, "--api-key", "sesame"],
            env=os.environ | environment,
            cwd=ROOT,
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for_health(url, server, log)
        return server

    servers = [serve()]
    try:
        run = start(f"--server.addresses={url}", VLLM_API_KEY="sesame")
        run.wait_for_steps(2)
        with chaos("engine_child", run, show) as fault:
            children = psutil.Process(servers[0].pid).children()
            kill([p for p in children if "EngineCore" in " ".join(p.cmdline())])
            servers[0].wait(timeout=60)
            servers.append(serve())
            fault.training_goes_on()
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.long
def test_a_full_disk(start, show):
    run = start()
    for name, trigger in (("disk_full", "disk"), ("disk_full_checkpoint", "checkpoint")):
        run.wait_for_steps(4)
        with chaos(name, run, show) as fault:
            (run.triggers / trigger).touch()
            assert run.end() == 1
            said = run.log.read_text()
            assert said.count("free some space") == 1 and "Traceback" not in said, said
            assert "Continue with: reasoner train --resume" in said
            (run.triggers / trigger).unlink()
            run.resume()
            fault.training_goes_on()
    run.kill()
    check_nothing_has_happened(run)
