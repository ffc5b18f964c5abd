"""Servers that somebody else started are waited for. Real ones: tests/integration."""

import socket
from types import SimpleNamespace

import pytest

from reasoner.config import Config
from reasoner.errors import ServerError
from reasoner.servers import server_launchers


@pytest.fixture
def silent():
    """The address of a server that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def wait_for(address, on_wait, timeout_s):
    config = Config(server={"addresses": [address], "startup_timeout_s": timeout_s})
    server_launchers(config, SimpleNamespace(end_token_ids=()), None, None, on_wait)


def test_a_server_of_others_that_never_answers_is_named(silent):
    with pytest.raises(ServerError, match=f"no answer within 1 s from {silent} in server.addresses"):
        wait_for(silent, lambda: None, timeout_s=0.6)


def test_whoever_waits_for_a_server_of_others_can_stop(silent):
    class Stopped(Exception):
        pass

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        wait_for(silent, stop, timeout_s=60)


def test_a_server_of_others_that_is_not_there_is_named():
    with pytest.raises(ServerError, match=r"server.addresses cannot be used: .*127.0.0.1:9: ConnectError"):
        wait_for("http://127.0.0.1:9", lambda: None, timeout_s=60)
