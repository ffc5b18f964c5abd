"""Nobody can reach the processes of a Ray that we have started from another machine."""

import psutil
import pytest
import ray

from reasoner import cluster

pytestmark = pytest.mark.slow


def listening():
    """(name, address) of the sockets at which this process and its descendants listen."""
    me = psutil.Process()
    found = set()
    for process in [me, *me.children(recursive=True)]:
        sockets = process.net_connections(kind="inet")
        found |= {(process.name(), s.laddr.ip) for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


def test_a_ray_of_our_own_listens_on_loopback_only(monkeypatch):
    class Actor:  # in here, since its process cannot import a test module
        def address(self):
            return ray.util.get_node_ip_address()

    ray.shutdown()
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")
    before = listening()
    with cluster.connected(""):
        actor = ray.remote(Actor).remote()
        assert ray.get(actor.address.remote(), timeout=120) == "127.0.0.1"
        new = listening() - before
    assert {"gcs_server", "raylet"} <= {name for name, _ in new}, "the test sees them"
    assert {ip.removeprefix("::ffff:") for _, ip in new} == {"127.0.0.1"}, new
