"""The errors a user can cause or must act on. The CLI prints their one message and exits with their code."""

from __future__ import annotations


class ReasonerError(Exception):
    """Base of every error with a message meant for the user; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(ReasonerError):
    """Bad usage or bad input: says what was wrong, where, and what to do."""

    exit_code = 2


class ServerError(ReasonerError):
    """A vLLM server died, never became healthy, or answered nonsense."""


class WeightSyncError(ServerError):
    """A server does not compute what the learner computes after a weight update."""


class BrokenPolicyError(ReasonerError):
    """The weights are not finite any more: there is no policy to save."""


class ServerLost(ServerError):
    """This server is gone, or does not serve at present: another one may answer the same request."""
