import socket
import types
import urllib.request

import pytest

from reasoner import Config, train
from reasoner.errors import UsageError
from reasoner.telemetry import Telemetry


def fleet(what, **counts):
    return types.SimpleNamespace(what=what, counts=lambda: counts)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read(port):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()


def test_numbers_of_the_newest_step_and_the_fleets_on_loopback():
    telemetry, port = Telemetry(), free_port()
    with telemetry.served(port):
        assert 'state="' not in read(port)  # nothing is known yet, and nothing fails
        telemetry.watch(fleet("server", serving=2, dead=1), fleet("worker", serving=1))
        held_out = {"pass@1": 0.75, "truncated_rate": None, "by_style": {"direct": {"pass@1": 1.0}}}
        telemetry.publish({"step": 1, "pass_rate": 0.25, "eval": {"held_out": held_out}})
        telemetry.publish({"step": 2, "pass_rate": 0.5, "entropy": None, "seconds": {"learn": 1.5}})
        text = read(port)
        assert "reasoner_step 2.0" in text and "reasoner_pass_rate 0.5" in text
        assert 'reasoner_seconds{phase="learn"} 1.5' in text
        assert 'reasoner_replicas{kind="server",state="dead"} 1.0' in text
        assert "entropy" not in text
        assert 'reasoner_eval{split="held_out",what="pass@1"} 0.75' in text, "the latest there is"
        assert text.count("reasoner_eval{") == 1
        with pytest.raises(UsageError, match=f"--metrics-port {port}"), telemetry.served(port):
            pass
    with pytest.raises(OSError):
        read(port)
    with telemetry.served(0):
        pass


def test_a_port_that_is_taken_is_an_error_before_anything_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match="--metrics-port"):
            train(Config(runs_dir=str(tmp_path)), metrics_port=other.getsockname()[1])
    assert not list(tmp_path.iterdir())
