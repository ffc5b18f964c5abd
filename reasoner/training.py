"""The one training loop: admit → collect → advantages → batch → update → sync, synchronous or not.

`max_staleness = 0` is on-policy: a step's groups are sampled by exactly the weights it updates. With k > 0
rollouts run ahead by at most k versions while the learner works; the only difference in this file is that
the queue admits more. The reward is what the verifier said and nothing else: no reward for format, length
or steps, no human solutions.

Left out on purpose: learning-rate search, reward shaping, value functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.tasks import TaskSource, load_tasks, prompt_text
from reasoner import cluster, endings, fingerprint
from reasoner.alarms import Alarms, Unjudged
from reasoner.checkpoint import CheckpointStore, load_state
from reasoner.config import Config, load_config
from reasoner.display import Display
from reasoner.driver import StopSignals
from reasoner.endings import Interrupted
from reasoner.errors import BrokenPolicyError, ReasonerError
from reasoner.evaluation import SPLITS, check_scored, evaluate_split, summarise, verifier_failed
from reasoner.journal import Journal
from reasoner.learner_client import LearnerClient
from reasoner.logs import at_step, log_file
from reasoner.metrics import MetricsWriter, Timeline, read_metrics, step_metrics
from reasoner.processes import Processes
from reasoner.recording import Recorder, StepOutcome, Update
from reasoner.redo import finished_steps
from reasoner.run import Run, config_at, config_files, lacks_evaluation, prepare
from reasoner.stall import StallWatch
from reasoner.stream import TaskStream
from reasoner.telemetry import Telemetry
from reasoner.trackers import trackers_of
from reasoner.types import Group, SamplingParams, Task
from reasoner.update import lr_scale, prepare_update, select_groups
from rollouts.queue import RolloutQueue
from rollouts.worker import GroupResult

log = logging.getLogger(__name__)

MAX_REPLACED = (
    4  # replaced groups a step, in batches: a policy that solves everything must not sample forever
)
MAX_IDLE_STEPS = 20  # steps in a row without any group to learn from, after which the user is told


@dataclass
class Progress:
    """What a checkpoint must remember beside weights, optimizer, task stream and the journal."""

    step: int = 0
    policy_version: int = 0
    seconds: float = 0.0
    best_pass: float = -1.0  # held-out pass@1 of the best checkpoint that was evaluated


def train(
    config: Config, *, verifier: Any = None, resume: str | Path | None = None, metrics_port: int = 0
) -> Path:
    """Trains and returns the run directory. `verifier`: any callable `(completion, task) -> bool | float |
    Verdict | None` in place of `config.verifier.name`. `metrics_port`: see `reasoner.telemetry`.

    Raises UsageError before anything starts when the configuration cannot work, and ReasonerError, with the
    run saved and resumable, when something breaks on the way."""
    telemetry = Telemetry()
    with telemetry.served(metrics_port):  # first: the port may be taken
        run = prepare(config, verifier=verifier, resume=resume)
        with run.lock, endings.explained(run):
            _train(run, telemetry)
    return run.path


def _train(run: Run, telemetry: Telemetry) -> None:
    """Starts the processes of the run, has the loop use them, and stops them."""
    config, display = run.config, Display(total_steps=run.config.steps)
    with ExitStack() as stack:
        stack.enter_context(display)
        stack.enter_context(log_file(run.log_dir / "driver.log"))
        stack.enter_context(endings.logged())
        stop_requested = stack.enter_context(StopSignals(display))
        for message in run.messages:
            display.message(message)
        display.status("starting Ray, vLLM and the learner …")
        stack.enter_context(cluster.connected(config.cluster.address))
        stop_requested.catch()  # Ray installs handlers of its own

        def check_stop() -> None:
            if stop_requested():
                raise Interrupted(str(run.path))

        processes = cluster.start(
            config,
            run.model,
            run.template,
            run.verifier,
            run.log_dir,
            learner_base=run.base_model.path,
            tell=display.message,
            on_wait=check_stop,
        )
        stack.callback(processes.stop)
        telemetry.watch(processes.servers, processes.workers)
        Loop(run, processes, display, check_stop, telemetry).run()


class Loop:
    """The state of a run in the driver. The driver holds no weights and no logits: actors do."""

    def __init__(
        self,
        run: Run,
        processes: Processes,
        display: Display,
        check_stop: Callable[[], None],
        telemetry: Telemetry,
    ) -> None:
        config = run.config
        self.run_, self.config, self.processes, self.display = run, config, processes, display
        self.check_stop, self.telemetry = check_stop, telemetry
        self.source: TaskSource = load_tasks(config.tasks.source, config.seed)
        self.checkpoints = CheckpointStore(run.path, config.checkpoint.keep)
        self.learner = LearnerClient(
            processes, self.checkpoints, run.model.path, display.message, self._meanwhile
        )
        self.journal = Journal(run.path)
        self.recorder = Recorder(self.journal, run.flops, asynchronous=config.max_staleness > 0)
        state = self._restore()
        self.progress = Progress(**{key: state[key] for key in Progress.__dataclass_fields__ if key in state})
        self.stream = TaskStream.from_state(config, self.source, state)
        self.saved_step = self.progress.step if run.resumed else None
        if run.finished_step > self.progress.step:
            self._redo(run.finished_step)
        resume_step = self.progress.step if run.resumed else None
        trackers = trackers_of(run.path, config.model_dump(mode="json"), resume_step)
        self.metrics = MetricsWriter(run.path, trackers, resume_step=resume_step, warn=display.message)
        per_server = max(1, config.server.max_num_seqs // config.rollout.group_size)
        replicas = len(config.server.addresses) or config.server.replicas
        self.queue = RolloutQueue(
            config.rollout.groups_per_step,
            config.max_staleness,
            max_concurrent=max(config.rollout.groups_per_step, 2 * replicas * per_server),
            version=self.progress.policy_version,
            trained=self.progress.policy_version * config.rollout.groups_per_step,
        )
        self.replaced: list[Group] = []  # since the last step, when they are replaced
        if run.resumed:
            self._restore_queue()
        self.dispatcher = processes.dispatcher
        self.calls: dict[int, int] = {}  # the ticket of a running group → its index in the stream
        self.idle_steps = 0
        self.busy_s: dict[str, float] = {}  # each server's engine has been at work for so long
        self.alarms, self.unjudged = Alarms(read_metrics(run.path)), Unjudged()
        self.last_evaluation = (-1, -1.0)  # step, held-out pass@1
        self.between_steps = True  # learner, journal and progress agree: a checkpoint may be written
        self.timeline = Timeline()
        self.last_verify_seconds = 0.0
        self.started = time.monotonic() - self.progress.seconds

    # ------------------------------------------------------------------ the path, in order

    def run(self) -> None:
        at_step(self.progress.step)
        try:
            values = self.learner.fingerprint()
            fingerprint.record(self.run_.path, self.progress.step, values)
            self._sync(self.progress.policy_version)
            if not self.source.split("held_out", 1):
                self.display.message(
                    f"{self.config.tasks.source} has no held-out tasks: no evaluation of them"
                )
            if not read_metrics(self.run_.path):
                self._record_initial_evaluation()
            self._make_up_evaluation()
            if self.saved_step is None:
                self.save()  # from here on a run can be resumed whatever happens
            while not self._finished():
                self.step()
            self._make_up_evaluation()  # the time may have run out after the last step
            self._save_if_new()
        except Interrupted:
            self._save_if_new()
            raise
        except BrokenPolicyError:
            raise  # there is nothing to save
        except Exception:  # also what nobody expected, such as a bug in an estimator of the user
            self._save_if_possible()
            raise
        finally:
            self._close()

    def _close(self) -> None:
        """The report is a copy of what is safe already: if it cannot be written, that is no failed run."""
        with ExitStack() as stack:
            stack.callback(self.metrics.close)
            stack.callback(self.journal.close)
            try:
                self._write_report()
            except (OSError, ReasonerError) as e:
                log.exception("no report")
                self.display.message(f"report.html could not be written: {e}")

    def step(self) -> None:
        """One training step: collect a batch, update on it, and give the new weights to the servers."""
        at_step(self.progress.step + 1)
        with self.timeline.measure("rollout"):
            self._pump(until=lambda: self.queue.batch_ready)
        groups, stale = self.queue.take_batch()
        self._check_scored(groups)
        kept, filtered = select_groups(groups, self.config)
        version = self.queue.version
        self._tell_of_idleness(bool(kept))
        self.between_steps = False
        update = self._update(kept) if kept else None
        with self.timeline.measure("sync"):
            self._sync(version + 1)
        self.progress.step += 1
        self.progress.policy_version = self.queue.version
        filtered, self.replaced = [*filtered, *self.replaced], []
        outcome = StepOutcome(version, kept, filtered, stale, update, self.learner.last_sync)
        self.stream.stepped([*outcome.kept, *outcome.filtered])
        self.recorder.journal_fates(self.progress.step, outcome)
        self.between_steps = True
        self._record(outcome)

    def _tell_of_idleness(self, learned: bool) -> None:
        self.idle_steps = 0 if learned else self.idle_steps + 1
        if self.idle_steps == MAX_IDLE_STEPS:
            self.display.message(
                f"no group of the last {MAX_IDLE_STEPS} steps had different rewards: nothing is learned "
                "(the tasks are too easy or too hard for the policy, or the verifier says the same to all)"
            )

    def _update(self, groups: list[Group]) -> Update:
        """Rewards → advantages → packed batch → loss and optimizer step."""
        prepared = prepare_update(groups, self.config)
        scale = lr_scale(self.config, self.progress.step)
        with self.timeline.measure("learn"), self._servers_aside():
            result = self.learner.update(prepared.batch, scale)
        lengths = [len(r.rollout.token_ids) for r in prepared.chosen]
        return Update(result.metrics, prepared.uses(result.learner_logprobs), lengths)

    @contextmanager
    def _servers_aside(self) -> Iterator[None]:
        """Colocated learner and servers take turns on the GPU."""
        if not self.config.cluster.colocate:
            yield
            return
        self.processes.sleep_servers()
        yield
        self.processes.wake_servers()

    # ------------------------------------------------------------------ sampling

    def _pump(self, until: Callable[[], bool]) -> None:
        """Keeps sampling going and takes in what finishes, until the condition holds."""
        watch = self._stall_watch(lambda: f"{len(self.calls)} groups are running")
        rounds = 0  # in which something finished
        while not until():
            self._admit()
            rounds += self._arrivals(timeout_s=1.0, beside=self.learner.syncing)
            self._tend()
            watch.check(rounds)

    def _stall_watch(self, waiting: Callable[[], str]) -> StallWatch:
        server = self.config.server
        tokens = None if server.addresses else self.processes.tokens_generated
        message = lambda: f"{waiting()} (logs: {self.run_.log_dir})"  # noqa: E731
        return StallWatch(tokens, message, server.startup_timeout_s)

    def _admit(self) -> None:
        self.queue.serving = self.learner.last_sync.version
        for _ in range(self.queue.admissible):
            index, task = self.stream.next()
            ticket = self.dispatcher.submit([task], self.config.rollout.group_size, self._sampling(), index)
            self.calls[ticket] = index
            self.queue.start(ticket)

    def _arrivals(self, timeout_s: float, beside: Sequence[Any] = ()) -> bool:
        """Takes in finished groups: durable in the journal first, then in the queue."""
        finished = self.dispatcher.finished(self.calls, timeout_s, beside)
        if finished:
            groups = [result.group for results in finished.values() for result in results]
            self.journal.append_groups(None, groups, self._sampling())
        for ticket, (result,) in finished.items():
            del self.calls[ticket]
            self._take_in(ticket, result)
        return bool(finished)

    def _take_in(self, ticket: int, result: GroupResult) -> None:
        group = result.group
        self.last_verify_seconds = result.verify_seconds
        self.stream.arrived(group)
        replace = self._is_replaced(group)
        self.queue.finish(ticket, group, keep=not replace)
        if replace:
            self.replaced.append(group)

    def _is_replaced(self, group: Group) -> bool:
        """Whether another group is sampled in place of this one, which carries no signal."""
        return (
            self.config.learner.zero_variance == "top_up"
            and len(self.replaced) < MAX_REPLACED * self.config.rollout.groups_per_step
            and bool(select_groups([group], self.config)[1])
        )

    def _meanwhile(self, call: Any) -> None:
        """While the learner works, rollouts go on arriving and, when staleness allows, being started."""
        self._admit()
        self._arrivals(timeout_s=1.0, beside=[call, *self.learner.syncing])
        self.learner.poll_sync()

    def _tend(self) -> None:
        """Called about once a second while rollouts are waited for, never in the middle of a step."""
        self.check_stop()
        self.learner.refit(self.queue.version)

    def _sync(self, version: int) -> None:
        """In asynchronous mode the servers get the weights while the learner goes on."""
        self.learner.sync(version)
        self.queue.version = version

    # ------------------------------------------------------------------ what is written down

    def evaluate(self) -> dict[str, Any]:
        """pass@1 and what goes with it on the held-out and the out-of-distribution split."""
        config, result = self.config.eval, {}
        self.learner.settle(self.queue.version)
        for split in SPLITS:
            tasks = self.source.split(split, config.problems)
            if not tasks:
                continue
            self.display.status(f"evaluating {split}: {len(tasks)} problems × {config.samples}")
            result[split] = self._evaluate_split(split, tasks)
        rate = result.get("held_out", {}).get("pass@1")
        if rate is not None:
            self.last_evaluation = (self.progress.step, rate)
        return result

    def _evaluate_split(self, split: str, tasks: Sequence[Task]) -> dict[str, Any]:
        watch = self._stall_watch(lambda: f"{split} is being evaluated")

        def tend(finished: int) -> None:
            self._tend()
            watch.check(finished)

        groups = evaluate_split(
            self.dispatcher, tasks, self.config.eval.samples, self._sampling(), on_wait=tend
        )
        self._check_scored(groups)
        return summarise(groups)

    def _check_scored(self, groups: Sequence[Group]) -> None:
        check_scored(groups)
        for message in self.unjudged.watch(groups):
            self.display.message(message)

    def _record_initial_evaluation(self) -> None:
        evaluation = self.evaluate()
        line = step_metrics(step=0, policy_version=0, seconds=self.timeline.lap(), evaluation=evaluation)
        self.telemetry.publish(line)
        self.display.update(self.metrics.write(line))

    def _make_up_evaluation(self) -> None:
        """The evaluation of the last step, if it is due and was interrupted: its line is completed."""
        if not (self._evaluation_due() and lacks_evaluation(self.run_.path, self.progress.step)):
            return
        line = self.metrics.amend({"eval": self.evaluate()})
        self._announce(line)
        self.display.update(line)
        self.saved_step = None  # a checkpoint knows whether it is the best
        self.timeline.lap()

    def _evaluation_due(self) -> bool:
        every = self.config.eval.every
        return self._finished() or bool(every and self.progress.step % every == 0)

    def _announce(self, line: Mapping[str, Any]) -> None:
        for message in self.alarms.watch(line):
            self.display.message(message)
        self.telemetry.publish(line)

    def _record(self, out: StepOutcome) -> None:
        """Evaluates when it is time to, writes the step down, saves when it is time to."""
        step, final = self.progress.step, self._finished()
        seconds = self._lap()
        stopped: Exception | None = None
        evaluation = None
        if self._evaluation_due():
            try:
                evaluation = self.evaluate()
            except Exception as e:  # the step itself is done: it is recorded first
                stopped = e
        elapsed_s = time.monotonic() - self.started
        line = self.recorder.metrics_of(step, out, seconds, evaluation, elapsed_s)
        line["sampler_busy_s"] = self._sampler_busy_s()
        line["retired_prompts"] = len(self.stream.retired)
        if self.stream.curriculum:
            line["curriculum"] = self.stream.curriculum.metrics([*out.kept, *out.filtered])
        self._announce(line)
        sample = out.sample()
        self.display.update(
            self.metrics.write(line), sample, prompt_text(sample.task.prompt) if sample else ""
        )
        due = self.config.checkpoint.every and step % self.config.checkpoint.every == 0
        if (due or self.learner.save_due) and not final:
            self.save()
        self.timeline.lap()
        if stopped:
            raise stopped

    def _sampler_busy_s(self) -> float | None:
        """Seconds since the last step that a server's engine was at work, averaged over those that serve."""
        busy, before = self.processes.busy_s(), self.busy_s
        self.busy_s = busy
        shared = busy.keys() & before.keys()
        return sum(busy[key] - before[key] for key in shared) / len(shared) if shared else None

    def _is_best(self) -> bool:
        """Whether the present step was evaluated, and better than every evaluated checkpoint before."""
        step, rate = self.last_evaluation
        if step != self.progress.step or rate <= self.progress.best_pass:
            return False
        self.progress.best_pass = rate
        return True

    def _lap(self) -> dict[str, float]:
        """The step's seconds; the last group's verification was waited for as part of the rollout phase."""
        seconds = self.timeline.lap()
        tail = min(self.last_verify_seconds, seconds["rollout"])
        self.last_verify_seconds = 0.0
        seconds["verify"] += tail
        seconds["rollout"] -= tail
        return seconds

    def save(self) -> None:
        """A complete checkpoint: weights, optimizer, position of data and queue."""
        self.progress.seconds = time.monotonic() - self.started
        best = self._is_best()
        waiting = [*self.calls.values(), *(g.index for g in self.queue.queued)]
        state = asdict(self.progress) | self.stream.state(waiting)
        step = self.progress.step
        self.learner.saved(self.checkpoints.save(step, self.learner.write_checkpoint, state, best=best))
        self.saved_step = step
        log.info("step %d is saved", step)

    def _save_if_new(self) -> None:
        if self.saved_step != self.progress.step:
            self.save()

    def _save_if_possible(self) -> None:
        """After a failure: saves unless it struck inside a step or the learner is gone."""
        if not self.between_steps:
            return
        try:
            self._save_if_new()
        except Exception as e:  # the failure itself is what the user must hear of
            log.error("could not save step %d: %s; the last checkpoint stands", self.progress.step, e)

    def _restore(self) -> dict[str, Any]:
        """What the checkpoint that is resumed remembers; empty for a new run."""
        path = self.run_.checkpoint
        if path is None:
            return {}
        self.learner.load_trainer(path)
        return load_state(path)

    def _redo(self, until: int) -> None:
        """Takes the steps again that were finished and that no checkpoint holds."""
        progress, path = self.progress, self.run_.path
        configs = [(last, load_config(file)) for last, file in config_files(path)]
        for finished in finished_steps(path, progress.step, until, lambda step: config_at(configs, step)):
            if finished.prepared is not None:
                self.learner.redo(finished.prepared.batch, finished.lr_scale)
            self.stream.stepped(finished.fresh)
            for group in finished.groups:
                self.stream.restored(group)
            progress.step = finished.step
            progress.policy_version += 1
            progress.seconds = finished.metrics["elapsed_s"]
        self.stream.continue_after_journaled(sampled_ahead=self.config.max_staleness > 0)

    def _restore_queue(self) -> None:
        """What the journal holds is queued again; what was being sampled, or what the verifier failed on, is
        sampled anew."""
        groups = self.journal.resume(self.progress.step, self.progress.policy_version)
        unjudged = {group.index for group in groups if verifier_failed(group)}
        if unjudged:
            self.journal.discard(sorted(unjudged), "unjudged")
            self.stream.again(unjudged)
            self.saved_step = None  # a checkpoint must know that they are to come
            self.display.message(
                f"the verifier had failed on {len(unjudged)} whole groups: sampling them again"
            )
        for group in groups:
            if group.index in unjudged:
                continue
            self.stream.restored(group)
            (self.replaced if self._is_replaced(group) else self.queue.queued).append(group)

    # ------------------------------------------------------------------ small print

    def _write_report(self) -> None:
        from reasoner.report import write_report

        write_report(self.run_.path)

    def _sampling(self) -> SamplingParams:
        rollout = self.config.rollout
        return SamplingParams(rollout.max_tokens, rollout.temperature, rollout.stop)

    def _finished(self) -> bool:
        limit = self.config.time_limit_s
        out_of_time = bool(limit) and time.monotonic() - self.started > limit
        return out_of_time or self.progress.step >= self.config.steps
