"""What an actor is called in Ray's dashboard and `ray list actors`: RUN/server-0, RUN/learner, …"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4


def actor_name(log_dir: str | Path, name: str) -> dict[str, str]:
    """Ray's options for it, where the run is what holds `log_dir`. Each actor has a namespace of its own: the
    name of one that was killed is not free at once, and the next one must not wait for that."""
    return {"name": f"{Path(log_dir).absolute().parent.name}/{name}", "namespace": uuid4().hex}
