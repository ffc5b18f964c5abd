"""What Ray raises when a process is gone, or what it had answered.

A process that dies is a `RayActorError` as a rule. Where Ray's memory monitor, a node or a raylet was in it,
it is one of the siblings below, and they mean the same to whoever waits: ask another one, or start it anew.
`RaySystemError` is not among them: the driver's own raylet is dead, and nothing can be started any more.
"""

from __future__ import annotations

from ray import exceptions

PROCESS_GONE = (
    exceptions.RayActorError,
    exceptions.WorkerCrashedError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.ObjectLostError,  # the answer was on a node, or with an owner, that died before it was fetched
    exceptions.ActorUnschedulableError,
    exceptions.ActorPlacementGroupRemoved,  # killed together with its place
)
