"""Several Ray nodes on this machine: the same command, servers away from the learner, a node that joins late,
a node that dies. A node has one logical CPU, so that servers and learner cannot share one."""

import os
import signal

import psutil
import pytest
from harness import Run, chaos, wait_until_gone

from reasoner import doctor_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")
    one_cpu = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=one_cpu)
    made.one_cpu = {k: v for k, v in one_cpu.items() if k != "include_dashboard"}
    made.add_node(**made.one_cpu)
    yield made
    made.shutdown()


def raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def actors(node, word):
    return [p for p in raylet(node).children() if word in " ".join(p.cmdline())]


def test_nodes_join_and_die(cluster, tmp_path, show):
    head, second = cluster.head_node, next(iter(cluster.worker_nodes))
    looked = doctor_ray.ask(cluster.address)
    assert len(looked["nodes"]) == 2 and not list(doctor_ray.disagreements(looked)), looked
    run = Run(tmp_path, "--server.replicas=2", f"--cluster.address={cluster.address}")
    try:
        run.wait_for_steps(3)
        assert "no room for server-" in run.output()
        assert len(actors(head, "LearnerActor") + actors(second, "VLLMServer")) in (0, 2)
        assert all(line["probe_max_abs_diff"] < 1e-3 for line in run.metrics()[1:])

        third = cluster.add_node(**cluster.one_cpu)
        run.wait_for_log(r"syncing → serving \(policy", count=2)
        assert len(actors(third, "VLLMServer")) == 1
        run.wait_for_steps(2)

        with chaos("node", run, show) as fault:
            everything = raylet(third).children(recursive=True)
            os.kill(raylet(third).pid, signal.SIGKILL)
            fault.training_goes_on()
            assert not wait_until_gone(everything)
        run.driver.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.output()
        left = actors(head, "Actor") + actors(second, "Actor")  # Ray ends them after the driver
        assert not wait_until_gone(left), "the run leaves the cluster as it was"
    finally:
        run.close()
