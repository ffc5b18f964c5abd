import socket
import types
import urllib.request

import pytest

from reasoner.errors import UsageError
from reasoner.telemetry import Telemetry


def fleet(what, **counts):
    return types.SimpleNamespace(what=what, counts=lambda: counts)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_numbers_of_the_newest_step_and_the_fleets_on_loopback():
    telemetry, port = Telemetry(fleet("server", serving=2, dead=1), fleet("worker", serving=1)), free_port()
    with telemetry.served(port):
        telemetry.publish({"step": 1, "pass_rate": 0.25})
        telemetry.publish({"step": 2, "pass_rate": 0.5, "entropy": None, "seconds": {"learn": 1.5}})
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        assert "reasoner_step 2.0" in text and "reasoner_pass_rate 0.5" in text
        assert 'reasoner_seconds{phase="learn"} 1.5' in text
        assert 'reasoner_replicas{kind="server",state="dead"} 1.0' in text
        assert "entropy" not in text
        with pytest.raises(UsageError, match=f"--metrics-port {port}"), telemetry.served(port):
            pass
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    with telemetry.served(0):
        pass
