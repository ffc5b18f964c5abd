"""One of each of Ray's errors that say that a process is gone."""

from ray import exceptions

GONE = [
    exceptions.RayActorError(),
    exceptions.ActorUnavailableError("no answer", None),
    exceptions.WorkerCrashedError(),
    exceptions.OutOfMemoryError("the node ran low on memory"),
    exceptions.NodeDiedError("the node is unreachable"),
    exceptions.LocalRayletDiedError(),
    exceptions.ObjectLostError("ab", None, ""),
    exceptions.OwnerDiedError("ab", None, ""),
    exceptions.ActorUnschedulableError("its node is dead"),
    exceptions.ActorPlacementGroupRemoved(),
]


def name(error):
    return type(error).__name__
