"""The control plane of one server, blocking: what weight sync does to it, whatever stands behind.

`control(server)` makes one from a `VLLMServer` actor, a URL, or a sampler. The four weight-transfer
methods are those of vLLM's own client protocol.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from reasoner.errors import ServerError, ServerLost, UsageError
from reasoner.types import Completion
from rollouts.gone import PROCESS_GONE
from rollouts.http_sampler import FAILED, PROBING, HTTPSampler
from rollouts.laps import Laps
from rollouts.packing import pack_sequences
from rollouts.sampler import RaySampler, own_error

#: A backstop: the fleet kills a server that does not answer long before. Moving the weights of a large model
#: takes its time.
ANSWER_TIMEOUT_S = 600.0

Probe = tuple[list[np.ndarray], list[np.ndarray]]  # token ids and logprobs, (T + 1,) each


class ServerControl(ABC):
    """Every method blocks and raises ServerError when the server fails, is gone, or does not answer."""

    name: str

    @abstractmethod
    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    @abstractmethod
    def start_weight_update(self) -> None: ...

    @abstractmethod
    def update_weights(self, update_info: Any) -> None: ...

    @abstractmethod
    def finish_weight_update(self) -> None: ...

    @abstractmethod
    def set_version(self, version: int) -> None: ...

    @abstractmethod
    def pause(self, clear_cache: bool, keep_kv: bool = False) -> None:
        """`keep_kv`: requests go on with the KV cache they have, where the server can do that."""

    @abstractmethod
    def resume(self, version: int) -> None: ...

    @abstractmethod
    def reject(self, reason: str) -> None: ...

    @abstractmethod
    def probe(self, sequences: Sequence[np.ndarray], temperature: float) -> Probe:
        """Each sequence with one sampled token appended, and the server's logprobs of all its tokens:
        teacher-forced for the sequence, behaviour logprob for the sampled token; entry 0 is 0. The server
        samples again then, but no completion leaves it before `resume`."""

    @abstractmethod
    def world_size(self) -> int:
        """How many workers it has (tensor parallelism)."""

    def shares_memory(self) -> bool:
        """Whether it can map the learner's memory: a server on another node cannot."""
        return True

    def refit(
        self,
        version: int,
        weights: Any,
        sequences: Sequence[np.ndarray],
        temperature: float,
        *,
        clear_cache: bool,
        keep_kv: bool,
    ) -> tuple[Probe, dict[str, float]]:
        """Pause, a whole weight update, probe: the probe's answer, and the seconds of `pause`, `transfer` and
        `probe`. `weights`: a Ray reference to the bytes for a server that does not share memory; for any
        other, such as this one, they are in place already."""
        clock = Laps()
        self.pause(clear_cache, keep_kv)
        clock.lap("pause")
        self.start_weight_update()
        self.update_weights({})
        self.finish_weight_update()
        self.set_version(version)
        clock.lap("transfer")
        answer = self.probe(sequences, temperature)
        clock.lap("probe")
        return answer, clock.seconds


class RayControl(ServerControl):
    """A `VLLMServer` actor. After its probe it goes on, and holds back what it completes until the resume."""

    def __init__(self, actor: ray.actor.ActorHandle) -> None:
        self._actor = actor
        self.name = actor._actor_id.hex()[:8]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._get(self._actor.init_weight_transfer_engine.remote(init_info))

    def start_weight_update(self) -> None:
        self._get(self._actor.start_weight_update.remote())

    def update_weights(self, update_info: Any) -> None:
        self._get(self._actor.update_weights.remote(update_info))

    def finish_weight_update(self) -> None:
        self._get(self._actor.finish_weight_update.remote())

    def set_version(self, version: int) -> None:
        self._get(self._actor.update_weight_version.remote(version))

    def shares_memory(self) -> bool:
        return self._get(self._actor.node_id.remote()) == ray.get_runtime_context().get_node_id()

    def refit(
        self,
        version: int,
        weights: Any,
        sequences: Sequence[np.ndarray],
        temperature: float,
        *,
        clear_cache: bool,
        keep_kv: bool,
    ) -> tuple[Probe, dict[str, float]]:
        """In one call: while the server is paused, every way to it and back is generation lost."""
        packed = pack_sequences([s.tolist() for s in sequences])
        (scores, sampled), seconds = self._get(
            self._actor.refit.remote(version, weights, packed, temperature, clear_cache, keep_kv)
        )
        return _joined(sequences, scores, sampled.unpack()), seconds

    def pause(self, clear_cache: bool, keep_kv: bool = False) -> None:
        self._get(self._actor.pause.remote(clear_cache, keep_kv))

    def resume(self, version: int) -> None:
        self._get(self._actor.resume.remote())

    def reject(self, reason: str) -> None:
        self._get(self._actor.reject.remote(reason))

    def probe(self, sequences: Sequence[np.ndarray], temperature: float) -> Probe:
        packed = pack_sequences([s.tolist() for s in sequences])
        scores, sampled = self._get(self._actor.probe.remote(packed, temperature))
        return _joined(sequences, scores, sampled.unpack())

    def world_size(self) -> int:
        return self._get(self._actor.world_size.remote())

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=ANSWER_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            raise own_error(error) from None
        except PROCESS_GONE as error:
            raise ServerLost(f"the vLLM server died: {error}") from error
        except ray.exceptions.GetTimeoutError:
            raise ServerLost(_no_answer(self.name)) from None


class HTTPControl(ServerControl):
    """An external server. A paused one answers nothing, so its probe runs after the resume, under a
    weight version `probing:N`; `HTTPSampler` holds completions with such tokens back until it is `N`."""

    def __init__(self, sampler: HTTPSampler) -> None:
        self._sampler = sampler
        self.name = sampler.url
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="http-control", daemon=True).start()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self) -> None:
        self._post("/finish_weight_update")

    def set_version(self, version: int) -> None:
        self._label(f"{PROBING}{version}")

    def pause(self, clear_cache: bool, keep_kv: bool = False) -> None:
        """vLLM keeps the KV of running requests only together with all it has cached: so it never does."""
        self._run(self._sampler.pause(clear_cache))

    def resume(self, version: int) -> None:
        """The probe has resumed it already; from now on its tokens count."""
        self._label(str(version))

    def reject(self, reason: str) -> None:
        self._run(self._sampler.pause(abort=True))  # nothing sampled from these weights may live on
        version = self._run(self._sampler.version())
        self._label(f"{FAILED}{version} {reason}")

    def probe(self, sequences: Sequence[np.ndarray], temperature: float) -> Probe:
        async def both() -> tuple[list[np.ndarray], list[Completion]]:
            await self._sampler.resume()
            lists = [s.tolist() for s in sequences]
            scores = await self._sampler.score(lists, temperature)
            return scores, await self._sampler.sample_one(lists, temperature, in_doubt=True)

        return _joined(sequences, *self._run(both()))

    def world_size(self) -> int:
        return self._run(self._sampler.get("/get_world_size"))["world_size"]

    def _label(self, label: str) -> None:
        self._post("/update_weight_version", {"new_version": label})

    def _post(self, path: str, body: Any = None) -> Any:
        return self._run(self._sampler.post(path, body))

    def _run(self, coroutine: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise ServerLost(_no_answer(self.name)) from None
        except UsageError as error:
            raise ServerError(str(error)) from error


def _no_answer(name: str) -> str:
    return f"server {name} did not answer for {ANSWER_TIMEOUT_S:.0f} s during a weight update"


def control(server: Any) -> ServerControl:
    """The control plane of an actor, a URL or a sampler."""
    if isinstance(server, ServerControl):
        return server
    if isinstance(server, str):
        return HTTPControl(HTTPSampler(server))
    if isinstance(server, HTTPSampler):
        return HTTPControl(server)
    if isinstance(server, RaySampler):
        return RayControl(server.actor)
    if isinstance(server, ray.actor.ActorHandle):
        return RayControl(server)
    raise UsageError(f"not a vLLM server: {server!r} (expected an actor, a URL or a sampler)")


def _joined(
    sequences: Sequence[np.ndarray], scores: Sequence[np.ndarray], sampled: Sequence[Completion]
) -> Probe:
    token_ids = [np.concatenate([s, c.token_ids]) for s, c in zip(sequences, sampled, strict=True)]
    logprobs = [np.concatenate([s, c.behaviour_logprobs]) for s, c in zip(scores, sampled, strict=True)]
    return token_ids, logprobs
