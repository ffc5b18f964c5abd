"""A port for a server that takes long to start: nobody else may get it meanwhile."""

import random
import socket

FIRST_HANDED_OUT = 32_768  # Linux gives outgoing connections, and who binds port 0, one from here on


def free_port():
    """A port of this machine that nobody listens on and that the kernel does not hand out."""
    while True:
        port = random.SystemRandom().randrange(20_000, FIRST_HANDED_OUT)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
