"""Tools, second tries and environments of one's own: texts, masks by hand, limits, and what is refused."""

import asyncio
import sys
import types

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from test_worker import Letters, run, tokens, worker

from envs import TaskSource, TextEnv, load_tasks, tools
from envs.self_correct import RETRY, SelfCorrectEnv
from envs.tool_use import INSTRUCTIONS, NO_CALLS_LEFT, ToolUseEnv
from reasoner.errors import ReasonerError, UsageError
from reasoner.types import Completion, SamplingParams, Task, Verdict
from rollouts.scripted import ScriptedSampler
from rollouts.worker import RolloutWorker

TASK = Task("t", "1+1", "2")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("12*(3+4)", "84"),
        ("2^10 - 24", "1000"),
        ("1/3 + 1/6", "1/2 = 0.5"),
        ("10/4 * 2", "5"),
        ("2^-2", "1/4 = 0.25"),
        ("7 \\times 8", "56"),
        ("1/0", "error: division by zero"),
        ("0^-1", "error: division by zero"),
        ("9^9^9^9", "error: the result is too large"),
        ("2^(1/2)", "error: only whole exponents"),
        ("x+1", "error: only numbers with + - * / ^ and parentheses"),
        ("__import__('os').system('true')", "error: only numbers with + - * / ^ and parentheses"),
        ("(((", "error: cannot read the expression"),
    ],
)
def test_the_calculator(text, result):
    said = tools.use("calc", text)
    assert said == result or (said.startswith("error: ") and result.startswith("error: ") and "os" in text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("factor(x^2 - 1)", "(x - 1)*(x + 1)"),
        ("diff(x*sin(x), x)", "x*cos(x) + sin(x)"),
        ("integrate(2x, x)", "x**2"),
        ("solve(x^2 = 4, x)", "[-2, 2]"),
    ],
)
def test_sympy_calls(text, result):
    assert tools.call_sympy(text) == result


@pytest.mark.parametrize(
    "text",
    [
        "open(x)",
        "factor",
        "diff(x)",
        "factor(()",
        "simplify(__import__)",
        "exec(x)",
        "factor(x).free_symbols",
    ],
)
def test_calls_that_sympy_never_sees(text):
    with pytest.raises(tools.ToolError):
        tools.call_sympy(text)


def test_sympy_runs_in_a_process_with_a_deadline(monkeypatch):
    assert tools.use("sympy", "expand((x+1)^2)") == "x**2 + 2*x + 1"
    assert tools.use("sympy", "eval(x)").startswith("error: write one of simplify")
    from verifiers.pool import VerifierPool

    with VerifierPool("envs.tools:in_verifier_process", timeout_s=0.3) as pool:
        monkeypatch.setattr(tools, "_pool", lambda: pool)
        said = tools.use("sympy", "expand((a+b+c+d+f+g+h)^60)")
        assert said in ("error: it took too long", "error: sympy cannot do that")


def test_tool_use_turn_by_turn():
    env = ToolUseEnv(TASK, calls=1)
    assert env.reset()[0] == f"{INSTRUCTIONS}\n1+1"
    assert env.step("so <calc>3*4</calc>")[:4] == ("<result>12</result>\n", 0.0, False, False)
    assert env.step("<calc>1</calc>")[0] == f"<result>{NO_CALLS_LEFT}</result>\n"
    observation, _, terminated, truncated, info = env.step("\\boxed{2}")
    assert (observation, terminated, truncated, info["completion"]) == ("", True, False, "\\boxed{2}")
    env.reset()
    env.step("<calc>1</calc>")
    env.step("<calc>1</calc>")
    assert env.step("<calc>1</calc>")[2:4] == (False, True), "calls without end are cut off"


def test_only_a_call_at_the_end_of_a_turn_is_one():
    env = ToolUseEnv(TASK)
    env.reset()
    assert env.step("<calc>1</calc> so \\boxed{2}")[2]


def test_self_correct_shows_the_verdict_and_grades_the_last_answer():
    env = SelfCorrectEnv(TASK, tries=3)
    env.reset()
    assert env.step("\\boxed{3}")[:4] == (RETRY, 0.0, False, False)
    assert env.step("\\boxed{2}")[2:] == (True, False, {"task_id": "t", "completion": "\\boxed{2}"})
    env.reset()
    env.step("\\boxed{3}")
    env.step("\\boxed{4}")
    assert env.step("\\boxed{5}")[4]["completion"] == "\\boxed{5}", "after the last try it is over"
    env.reset(options={"verify": lambda completion, task: Verdict.error("broken")})
    assert env.step("\\boxed{3}")[2], "a verifier that cannot say gives no second try"


@pytest.mark.parametrize(
    "spec", ["tool_use(arithmetic:levels=2,calls=2)", "self_correct(arithmetic,tries=3)"]
)
def test_they_are_task_sources_and_gymnasium_environments(spec):
    source = load_tasks(spec)
    assert isinstance(source, TaskSource)
    task = source.train(0)
    env = source.env(task)
    check_env(env, skip_render_check=True)
    wrapped = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.wrappers.TimeLimit(env, 1))
    wrapped.reset(options={"task": task})
    assert wrapped.step("<calc>1</calc>")[3], "the wrapper's limit"
    vector = gymnasium.vector.SyncVectorEnv([lambda: source.env(task)] * 2)
    vector.reset(seed=1)
    assert vector.step(("\\boxed{0}", "\\boxed{0}"))[0]
    assert source.split("held_out", 2)[0].prompt


def test_wrapped_mixtures_in_mixtures_keep_their_way_home():
    source = load_tasks("self_correct(arithmetic:levels=1,tool_use(linear),tries=3),countdown")
    for task in map(source.train, range(12)):
        env = source.env(task)
        assert isinstance(env, SelfCorrectEnv) == (task.family != "countdown")
        assert source.member(task).name in ("countdown", source.sources[0].name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("self_correct", "needs the tasks it is for"),
        ("self_correct(tries=2)", "needs the tasks it is for"),
        ("self_correct(arithmetic,tries=0)", "tries must be a whole number from 1 on"),
        ("self_correct(trys=2,arithmetic)", "'trys=2' is no option: did you mean 'tries'"),
        ("tool_use(arithmetic,call=2)", r"no option 'call'.*families, levels\); tool_use itself has calls$"),
        (
            "self_correct(tool_use(rg:bf,call=2))",
            "no option 'call'.*; tool_use .* calls; self_correct .* tries$",
        ),
        ("tool_use(aritmetic)", "did you mean 'arithmetic'"),
    ],
)
def test_bad_wrappers(spec, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(spec)


def test_masks_of_two_tries_by_hand():
    source = load_tasks("self_correct(arithmetic,tries=2)")
    subject, sampler, grader = worker([tokens("3"), tokens("2")], source, context=200)
    (result,) = run(subject, [TASK], group_size=1, max_tokens=40)
    rollout = result.group.rollouts[0]
    prompt, retry = list(map(ord, "1+1=?\n")), list(map(ord, RETRY))
    assert rollout.token_ids.tolist() == [*prompt, *tokens("3"), *retry, *tokens("2")]
    mask = [False] * len(prompt) + [True] * 2 + [False] * len(retry) + [True] * 2
    assert rollout.action_mask.tolist() == mask
    assert rollout.behaviour_logprobs.tolist() == [-1.0 if m else 0.0 for m in mask]
    assert rollout.policy_version.tolist() == [3 if m else -1 for m in mask]
    assert grader.groups == [["3"], ["2"]], "once for the observation, once for the reward"
    assert rollout.verdict.is_correct and rollout.terminated


def test_a_tool_call_stops_the_policy_and_its_result_is_masked():
    source = load_tasks("tool_use(arithmetic)")
    subject, sampler, grader = worker([[*map(ord, "<calc>6*7</calc>")], tokens("42")], source, context=500)
    (result,) = run(subject, [Task("t", "6*7", "42")], group_size=1, max_tokens=60)
    rollout = result.group.rollouts[0]
    assert sampler.requests[0][1].stop == ("</calc>", "</sympy>")
    said = len("<result>42</result>\n")
    assert rollout.action_mask.tolist()[-(16 + said + 3) :] == [True] * 16 + [False] * said + [True] * 3
    assert grader.groups == [["42"]] and rollout.verdict.is_correct


class ChatLetters(Letters):
    """Turns are `[role:text]`, and token 0 (`]`) ends them."""

    eos_token_id, eos_token = 0, "]"

    def apply_chat_template(self, messages, add_generation_prompt, return_dict=False, tokenize=True):
        text = "".join(f"[{m['role'][0]}:{m['content']}]" for m in messages) + "[a:"
        return self.encode(text) if tokenize else text


def test_an_observation_after_a_chat_models_turn_is_a_turn_of_the_users():
    source = load_tasks("self_correct(arithmetic,tries=2)")
    _, _, grader = worker([tokens("1")])
    subject = RolloutWorker(ChatLetters(), source, "chat", grader, 500)
    sampler = ScriptedSampler([tokens("3"), tokens("2")], version=3)
    params = SamplingParams(60)
    (result,) = asyncio.run(subject.run([TASK], 1, params, 0, sampler))
    text = "".join(chr(i) if i else "]" for i in result.group.rollouts[0].token_ids.tolist())
    assert text.endswith(f"[a:3][u:{RETRY}][a:2]")
    assert result.group.rollouts[0].action_mask.sum() == 4
    unfinished = Completion(*[tokens("3")[:1]] * 3, finish_reason="stop")
    assert subject._observation_ids(unfinished, "x") == [ord("x")], "in the middle of a turn it is text"


class Guess(TextEnv):
    """Guess a number from 1 to 40 in two turns."""

    def begin(self, task):
        if task is None:
            task = Task("g", "Guess my number.", str(int(self.np_random.integers(1, 41))))
        self.turn = 0
        return task, task.prompt

    def respond(self, action):
        self.turn += 1
        return ("", True, False, action) if self.turn == 2 else ("no\n", False, False, None)


@pytest.fixture
def my_env(monkeypatch):
    module = types.ModuleType("my_env")
    module.Guess = Guess
    monkeypatch.setitem(sys.modules, "my_env", module)
    return module


def test_an_environment_of_ones_own_is_a_task_source(my_env):
    source = load_tasks("my_env:Guess", 5)
    assert isinstance(source, TaskSource) and source.finite is False
    assert source.train(3) == load_tasks("my_env:Guess", 5).train(3)
    trained = {source.train(i).reference for i in range(200)}
    held = {t.reference for t in source.split("held_out", 20)}
    assert held and not trained & held and source.split("ood", 3) == []
    mixture = load_tasks("my_env:Guess,arithmetic", 5)
    assert {type(mixture.env(mixture.train(i))).__name__ for i in range(8)} == {"Guess", "SingleTurnEnv"}


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("begin", (TASK, 3), "Bad.begin gave an observation of type int"),
        ("begin", "text", "Bad.begin must return .Task, text., got 'text'"),
        ("respond", (b"no", False, False, None), "Bad.respond gave an observation of type bytes"),
        ("respond", "no", "Bad.respond must return"),
    ],
)
def test_what_an_environment_returns_is_checked(method, returned, message):
    bad = type("Bad", (Guess,), {method: lambda self, given: returned})()
    with pytest.raises(UsageError, match=message):
        bad.reset(seed=1)
        bad.step("x")


def test_an_environment_that_raises_names_itself_the_task_and_the_line(my_env):
    def broken(self, action):
        raise KeyError("nowhere")

    my_env.Bad = type("Bad", (Guess,), {"respond": broken})
    subject, _, _ = worker([tokens("1")], load_tasks("my_env:Bad"))
    with pytest.raises(
        ReasonerError,
        match=r"^Bad\.respond failed on task t: KeyError: 'nowhere' \(test_env_interactive\.py:\d+\)$",
    ):
        run(subject, [TASK])
    my_env.Bad = type("Bad", (Guess,), {"respond": lambda self, action: (3, True, False, "")})
    subject, _, _ = worker([tokens("1")], load_tasks("my_env:Bad"))
    with pytest.raises(UsageError, match=r"^task t: Bad\.respond gave an observation of type int"):
        run(subject, [TASK])
    my_env.Bad = type("Bad", (Guess,), {"begin": broken})
    with pytest.raises(
        UsageError, match=r"my_env:Bad failed to begin train/0/0: KeyError: 'nowhere' \(test_env_"
    ):
        load_tasks("my_env:Bad")


def test_a_gymnasium_environment_with_other_observations_is_named():
    class Numbers(gymnasium.Env):
        def reset(self, *, seed=None, options=None):
            return 3, {}

    class Source:
        name, finite, base_template, chat_template = "n", False, "{prompt}", "{prompt}"

        def env(self, task):
            return Numbers()

    subject, _, _ = worker([tokens("1")], Source())
    with pytest.raises(UsageError, match="the environment Numbers gave an observation of type int"):
        run(subject, [TASK])


def test_what_ray_wraps_around_an_error_is_taken_off():
    from ray.exceptions import RayTaskError

    from reasoner.cluster import unwrap

    cause = UsageError("Bad.respond gave an observation of type int")
    wrapped = RayTaskError("run", "Traceback …", cause).as_instanceof_cause()
    assert isinstance(wrapped, UsageError) and unwrap(wrapped) is cause
