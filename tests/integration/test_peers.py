"""The adapters with the libraries they are for, each in a process that sees them and as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import make_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".bench" / "peers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PEERS / ".installed").exists(), reason="TRL, math-verify and verl are not there: make peers"
    ),
]


def run(*arguments: object, folder: Path) -> str:
    """Standard output of a Python process that sees the peers."""
    path = os.pathsep.join([str(ROOT), str(PEERS), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def graded(folder: Path, rewards: str, verifier: str, answers: list[tuple[str, str]]) -> list[dict]:
    """What `reasoner verify` says with `verifier` of a file that holds `rewards`."""
    (folder / "rewards.py").write_text(rewards)
    lines = [json.dumps({"id": i, "gold": gold, "pred": pred}) for i, (gold, pred) in enumerate(answers)]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    judge = f"rewards.py:{verifier}"
    out = run("-m", "reasoner.cli", "verify", "answers.jsonl", "--verifier", judge, folder=folder)
    return [json.loads(line) for line in out.splitlines()]


TRL_REWARDS = """
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

from verifiers.adapters import from_trl
from verifiers.composite import Composite

accuracy = from_trl(accuracy_reward, column="solution", chat=True)
short = from_trl(get_soft_overlong_punishment(60, 40), encode=lambda text: text.encode())
both = Composite({accuracy: 3, short: 1}, gates=[from_trl(think_format_reward, chat=True)])
"""


def test_trl_rewards_are_verifiers(tmp_path):
    thought = "<think>a half</think>"
    answers = [
        ("$0.5$", rf"{thought}\boxed{{\frac{{1}}{{2}}}}"),
        ("$0.5$", rf"{thought}\boxed{{3}}"),
        ("$0.5$", r"\boxed{\frac{1}{2}}"),
        ("nothing that math-verify reads", rf"{thought}\boxed{{3}}"),
    ]
    lines = graded(tmp_path, TRL_REWARDS, "accuracy", answers)
    assert [line["reward"] for line in lines] == [1.0, 0.0, 1.0, None]
    assert lines[3]["status"] == "masked", "what TRL leaves out, we leave out"
    lines = graded(tmp_path, TRL_REWARDS, "both", answers)
    assert len(answers[0][1]) == 40, "in the middle of the soft zone from 20 to 60"
    assert lines[0]["reward"] == pytest.approx((3 * 1.0 - 0.5) / 4)
    assert lines[2]["reward"] == 0.0 and "gate think_format_reward" in lines[2]["detail"]
    assert lines[3]["reward"] is None


def test_our_verifier_rewards_trls_trainer(tmp_path):
    """TRL averages what the verifier said of the rollouts it trained on, those it left out not among them."""
    model = make_model(tmp_path / "model")
    logged = json.loads(run(HERE / "in_trl.py", model, folder=tmp_path).splitlines()[-1])
    ours = {k.split("/")[-1]: v for k, v in logged.items() if k.startswith("rewards/reasoner_")}
    same = {k.split("/")[-1]: v for k, v in logged.items() if k.startswith("rewards/directly")}
    assert ours == same and 0 < ours["mean"] < 1


VERL_REWARDS = """
from verl.utils.reward_score import default_compute_score

from verifiers.adapters import from_verl

dapo = from_verl(default_compute_score, "math_dapo")
"""


def test_a_verl_reward_is_a_verifier(tmp_path):
    lines = graded(tmp_path, VERL_REWARDS, "dapo", [("84", "12*7, Answer: 84"), ("84", "Answer: 85")])
    assert [line["reward"] for line in lines] == [1.0, -1.0], "verl answers with a dict here"


SCORE = """
from verifiers.adapters import for_verl
from verifiers.pool import VerifierPool

compute_score = for_verl(VerifierPool("math"))
"""


def test_our_verifier_rewards_verls_reward_manager(tmp_path):
    """verl loads the function from a file and puts its reward on the last token of each response."""
    (tmp_path / "score.py").write_text(SCORE)
    model = make_model(tmp_path / "model")
    rewards, length, scores = json.loads(
        run(HERE / "in_verl.py", model, "score.py", folder=tmp_path).splitlines()[-1]
    )
    nothing = [0.0] * (length + 2)
    assert rewards[1] == nothing
    assert rewards[0] == nothing[: length - 1] + [1.0, 0.0, 0.0]
    assert scores == [1.0, 0.0, 0.0]
