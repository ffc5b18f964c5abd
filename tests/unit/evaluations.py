"""What the tests of an evaluation share: a tokenizer of letters, a scripted model, a verifier, tasks."""

from concurrent.futures import Future

from envs.tasks import FileTasks
from reasoner.evaluation.collect import Collector, missing_work
from reasoner.evaluation.generate import LocalGenerator
from reasoner.evaluation.grade import Grader
from reasoner.evaluation.progress import Progress
from reasoner.evaluation.store import EvalStore
from reasoner.types import SamplingParams, Task
from rollouts.scripted import ScriptedSampler
from verifiers import MathVerifier

END = 0
TASKS = (Task("a", "1+1", "2"), Task("b", "1+2", "3"))
SOURCE = FileTasks("two", TASKS, {})
IDENTITY = {"model": "scripted", "sampling": {"max_tokens": 16}}


def tokens(text):
    return [*(ord(c) for c in text), END]


class Letters:
    """A tokenizer of one token a character; token 0 is the end."""

    def encode(self, text, add_special_tokens=True):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i != END)


class InlinePool:
    """A verifier pool without processes: the real math verifier, called at once."""

    def __init__(self, verifier=None):
        self.verifier = verifier or MathVerifier()
        self.verified = []

    def submit_pairs(self, pairs, explain=False):
        self.verified += [completion for completion, _ in pairs]
        return _done([self.verifier.verify(completion, task) for completion, task in pairs])

    def submit_group(self, completions, task):
        self.verified.append(list(completions))
        return _done(self.verifier.verify_group(completions, task))

    def answer_keys(self, completions, tasks):
        return [self.verifier.answer_key(c, t) for c, t in zip(completions, tasks, strict=True)]

    def candidates(self, completions, tasks):
        return [self.verifier.candidates(c) for c in completions]


def _done(value):
    future = Future()
    future.set_result(value)
    return future


def generator(script, max_in_flight=8, context=256):
    sampler = ScriptedSampler(script)
    return LocalGenerator([sampler], Letters(), SOURCE, "base", context, max_in_flight, [END]), sampler


async def collect(directory, generate, samples, points=(), max_tokens=16, pool=None):
    """One run of an evaluation in `directory`; how much there was to do."""
    with EvalStore(directory, IDENTITY) as store:
        store.add_tasks("held_out", TASKS)
        pool = pool or InlinePool()
        grader = Grader(store, {("held_out", t.id): t for t in TASKS}, pool, None)
        work = list(missing_work(store, {"held_out": TASKS}, samples, points, max_tokens))
        await Collector(store, generate, grader, SamplingParams(max_tokens), Progress(quiet=True), 0).run(
            work
        )
        return len(work)


def stored(directory):
    with EvalStore(directory, IDENTITY) as store:
        return list(store.samples("held_out"))
