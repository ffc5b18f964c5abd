"""A Ray of this machine only, which nobody can reach from another one.

Ray's processes listen on all interfaces unless the address of their node is the loopback address. On Linux
`ray.init` turns 127.0.0.1 into the machine's own address again, so that other nodes could join; on macOS and
Windows, where none can, it does not. For the time of a start we say that none can join here either. The
address also outlives a change of network (Wi-Fi, VPN), which the machine's own does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started in the block has loopback addresses."""
    before = ray_constants.ENABLE_RAY_CLUSTER  # what the environment said to `import ray`
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
