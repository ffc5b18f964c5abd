"""TextEnv and TextSpace: gymnasium's contract, vector environments, texts of any kind."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import envs
from envs import SingleTurnEnv, TextEnv, TextSpace
from reasoner.errors import UsageError
from reasoner.types import Task

TASK = Task("t/1", "1+2", "3")
ODD_TEXTS = ["", " ", "\n", "a b", "87+74=?\n\\boxed{161}", "naïve 数学 🙂", "\x00\x7f"]


class Echo(TextEnv):
    """Two turns; grades what was said first."""

    def begin(self, task):
        self.said = []
        return task or TASK, "täsk 🙂\n"

    def respond(self, action):
        self.said.append(action)
        done = len(self.said) == 2
        return f"[{action}]", done, False, self.said[0] if done else None


class Endless(TextEnv):
    """Cuts every episode off at its first turn."""

    def begin(self, task):
        return task or TASK, "?"

    def respond(self, action):
        return "", False, True, None


def test_the_last_action_is_graded_where_the_environment_names_no_text():
    env = Endless()
    env.reset()
    assert env.step("42")[2:] == (False, True, {"task_id": TASK.id, "completion": "42"})


@pytest.mark.parametrize("name", ["Arithmetic", "SelfCorrect", "ToolUse"])
def test_the_registered_environments_pass_check_env(name):
    env = gymnasium.make(f"reasoner/{name}-v0")
    check_env(env.unwrapped)
    assert isinstance(env.unwrapped, TextEnv)


def test_a_registered_environment_is_that_of_its_tasks():
    env = gymnasium.make("reasoner/Arithmetic-v0", tasks="self_correct(arithmetic:levels=1,tries=3)")
    observation, _ = env.reset(seed=0)
    task = env.unwrapped.task
    assert observation == f"{task.prompt}=?\n"
    assert env.step(r"\boxed{7000}")[:4] == ("\nThat is not right. Try again.\n", 0.0, False, False)
    right = rf"\boxed{{{task.reference}}}"
    assert env.step(right)[2:] == (True, False, {"task_id": task.id, "completion": right})
    assert env.reset(options={"task": TASK})[0] == "1+2=?\n"
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_registered_environments_take_wrappers(mode):
    vector = gymnasium.make_vec("reasoner/ToolUse-v0", num_envs=2, vectorization_mode=mode)
    vector = RecordEpisodeStatistics(vector)
    prompts, _ = vector.reset(seed=[1, 2])
    assert len(set(prompts)) == 2 and all(p.startswith("You may use tools") for p in prompts)
    observations, *_ = vector.step(("<calc>6*7</calc>", "<calc>1/0</calc>"))
    assert observations == ("<result>42</result>\n", "<result>error: division by zero</result>\n")
    _, rewards, terminated, _, info = vector.step(("42", "nothing"))
    assert terminated.all() and not rewards.any()
    assert info["episode"]["l"].tolist() == [2, 2] and list(info["completion"]) == ["42", "nothing"]
    vector.close()


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_the_space_really_contains_every_text(text):
    assert text in TextSpace()
    assert TextSpace(3).contains(text) is (len(text) <= 3)


def test_the_space_contains_only_texts_and_its_own_samples():
    space = TextSpace(seed=1)
    assert not space.contains(3) and not space.contains(b"a") and not space.contains(None)
    samples = [space.sample() for _ in range(200)]
    assert all(s in space for s in samples) and len(set(samples)) > 150
    assert samples == [s for again in [TextSpace(seed=1)] for s in [again.sample() for _ in range(200)]]
    assert TextSpace(3) == TextSpace(3) != TextSpace(4)


def test_reset_with_a_task_and_the_last_turn():
    env = gymnasium.make("reasoner/Arithmetic-v0")
    observation, info = env.reset(seed=3, options={"task": TASK})
    assert (observation, info) == ("1+2=?\n", {"task_id": "t/1"})
    assert env.step(" \\boxed{3}") == (
        "",
        0.0,
        True,
        False,
        {"task_id": "t/1", "completion": " \\boxed{3}"},
    )


def test_reset_is_seeded_and_draws_training_problems():
    env = gymnasium.make("reasoner/Arithmetic-v0", tasks="arithmetic:levels=2,families=product")
    first, info = env.reset(seed=11)
    second = env.reset()[0]
    assert env.reset(seed=11)[0] == first != second
    assert info["task_id"].startswith("arithmetic/train/")
    assert "*" in first and "*" in second


def test_a_turn_in_between_has_no_completion_and_observations_are_deltas():
    env = Echo(render_mode="ansi")
    env.reset()
    observation, reward, terminated, truncated, info = env.step("a")
    assert (observation, reward, terminated, truncated, info) == (
        "[a]",
        0.0,
        False,
        False,
        {"task_id": "t/1"},
    )
    assert env.step("b")[4] == {"task_id": "t/1", "completion": "a"}
    assert env.render() == "täsk 🙂\na[a]b[b]"


def test_truncation_is_not_termination():
    env = Endless()
    env.reset()
    assert env.step("x") == ("", 0.0, False, True, {"task_id": "t/1", "completion": "x"})


def test_misuse_is_a_usage_error():
    env = SingleTurnEnv(TASK)
    with pytest.raises(UsageError, match="reset"):
        env.step("x")
    env.reset()
    with pytest.raises(UsageError, match="got int"):
        env.step(3)
    env.step("x")
    with pytest.raises(UsageError, match="is over"):
        env.step("x")
    with pytest.raises(UsageError, match="must be a Task, got str"):
        env.reset(options={"task": "1+2"})
    with pytest.raises(UsageError, match="needs a task"):
        SingleTurnEnv()


@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_vector_environments_keep_texts_exactly(vector):
    batch = vector([Echo, Echo])
    try:
        assert tuple(batch.reset(seed=1)[0]) == ("täsk 🙂\n", "täsk 🙂\n")
        observations, rewards, *_ = batch.step(("", "a\n 🙂"))
        assert tuple(observations) == ("[]", "[a\n 🙂]")
        assert np.array_equal(rewards, [0.0, 0.0])
        infos = batch.step(("b", "c"))[4]
        assert list(infos["completion"]) == ["", "a\n 🙂"]
        assert tuple(observations) == ("[]", "[a\n 🙂]")
    finally:
        batch.close()


def test_importing_envs_is_light():
    code = (
        "import sys, envs; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert envs.__all__
