"""What happens when things around a server die: nothing of it may stay, and everybody is told."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MARK = "REASONER_DEATH_TEST"

DRIVER = """
import asyncio, sys, ray
from rollouts.server import ServerConfig, start_server
from rollouts.sampler import RaySampler
from reasoner.errors import ServerError
from reasoner.types import SamplingParams

sys.path.insert(0, sys.argv[3])
import tiny_model

tiny_model.start_ray()
actor = start_server(ServerConfig(model=sys.argv[1], max_model_len=4096, kv_cache_gib=0.1), name="s",
                     log_dir=sys.argv[2], timeout_s=600)
print("pid", ray.get(actor.pid.remote()), flush=True)

async def forever():
    while True:
        await RaySampler(actor).generate([[5, 6]] * 8, SamplingParams(max_tokens=4000))
        print("alive", flush=True)

try:
    asyncio.run(forever())
except ServerError as error:
    line = "ServerError " + " ".join(str(error).split())[:60]
    sys.stdout.write(f"\\n{line}\\n")  # in one piece: a thread of Ray's prints there too
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    return tiny_model.make_model(path, end=None)


@pytest.fixture
def driver(model, tmp_path):
    """A driver process with one server that is busy generating, and the server's pid."""
    environment = os.environ | {MARK: str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, model, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        word, pid = process.stdout.readline().split()
        assert word == "pid"
        time.sleep(1.0)
        yield process, int(pid), str(tmp_path)
    finally:
        process.kill()
        process.wait()
        for left in marked_processes(str(tmp_path)):
            left.kill()


def marked_processes(value):
    """Every process that inherited this test's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == value:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for_none(find, seconds):
    deadline = time.monotonic() + seconds
    while left := find():
        assert time.monotonic() < deadline, f"still there: {[' '.join(p.cmdline())[:80] for p in left]}"
        time.sleep(0.2)


def test_a_killed_driver_leaves_nothing_behind(driver):
    process, pid, mark = driver
    assert psutil.pid_exists(pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for_none(lambda: [p for p in marked_processes(mark) if p.pid == pid], 30)
    wait_for_none(lambda: marked_processes(mark), 90)  # Ray itself too


def test_a_killed_server_is_an_error_for_its_callers_at_once(driver):
    process, pid, _ = driver
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    lines = iter(process.stdout.readline, "")  # Ray adds lines of its own
    errors = (line for line in lines if line.startswith("ServerError"))
    assert next(errors, "").startswith("ServerError the vLLM server died:")
    assert time.monotonic() - killed < 30
    # Its caller may know before Ray has reaped it.
    wait_for_none(lambda: [p for p in psutil.process_iter() if p.pid == pid], 30)


@pytest.fixture(scope="module")
def cluster():
    import ray

    tiny_model.start_ray()
    yield
    ray.shutdown()


def test_a_server_that_cannot_start_shows_its_last_lines(cluster, tmp_path):
    from reasoner.errors import ServerError
    from rollouts.server import ServerConfig, start_server

    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"], "model_type": "qwen3"}')
    config = ServerConfig(model=str(broken), kv_cache_gib=0.1)
    with pytest.raises(ServerError, match="server broken did not start; its last lines:") as caught:
        start_server(config, name="broken", log_dir=tmp_path, timeout_s=600)
    assert "NoSuchForCausalLM" in str(caught.value)
    assert "NoSuchForCausalLM" in (tmp_path / "server_broken.log").read_text()


def test_a_server_that_is_too_slow_is_given_up(cluster, model, tmp_path):
    from reasoner.errors import ServerError
    from rollouts.server import ServerConfig, start_server

    before = {p.pid for p in marked_servers()}
    with pytest.raises(ServerError, match="server slow is not ready after 2 s"):
        start_server(ServerConfig(model=model, kv_cache_gib=0.1), name="slow", log_dir=tmp_path, timeout_s=2)
    wait_for_none(lambda: [p for p in marked_servers() if p.pid not in before], 60)


def marked_servers():
    """Server actors on this machine, by the title Ray gives their processes."""
    return [p for p in psutil.process_iter() if "VLLMServer" in " ".join(_command(p))]


def _command(process):
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_an_engine_that_fails_fails_everything_it_holds(cluster, model, tmp_path):
    """An exception inside vLLM's step: callers get it, later ones too, and health says so."""
    import ray

    from reasoner.errors import ServerError
    from reasoner.types import SamplingParams
    from rollouts.sampler import RaySampler
    from rollouts.server import ServerConfig, VLLMServer, wait_until_ready

    class Sabotaged(VLLMServer):
        async def break_model(self):
            def fail(*args, **kwargs):
                raise RuntimeError("planted")

            self._core.engine_core.model_executor.execute_model = fail

    config = ServerConfig(model=model, max_model_len=4096, kv_cache_gib=0.1)
    actor = ray.remote(Sabotaged).options(max_concurrency=100, num_cpus=0).remote(config)
    wait_until_ready({"sabotaged": actor}, log_dir=tmp_path, timeout_s=600)
    sampler = RaySampler(actor)

    async def scenario():
        params = SamplingParams(max_tokens=4000)
        running = asyncio.create_task(sampler.generate([[5, 6]], params))
        await sampler.pause()
        held = asyncio.create_task(sampler.generate([[5, 7]], params))
        await asyncio.sleep(0.2)
        await actor.break_model.remote()
        await sampler.resume()
        for task in (running, held, sampler.generate([[5]], params), sampler.health(), sampler.pause()):
            with pytest.raises(ServerError, match="planted"):
                await task

    asyncio.run(scenario())
    ray.kill(actor)
