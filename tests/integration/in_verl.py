"""verl's reward manager with our `compute_score` from the file in argv, and verl's own as our verifier.
Prints the rewards as (2, T), the tokens of each response, and the scores of verl's. (test_peers.py)"""

import json
import sys

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import default_compute_score
from verl.workers.reward_manager.naive import NaiveRewardManager

from reasoner import Task
from verifiers.adapters import from_verl

PAD = [0, 0]


def batch(tokenizer, texts: list[str]) -> DataProto:
    ids = [tokenizer(text)["input_ids"] for text in texts]  # all of one length
    tensors = {
        "prompts": torch.full((len(ids), 3), 70),
        "responses": torch.tensor([row + PAD for row in ids]),
        "attention_mask": torch.tensor([[1] * (3 + len(row)) + PAD for row in ids]),
    }
    each = {"data_source": "sums", "reward_model": {"ground_truth": "84"}, "extra_info": {"question": "12*7"}}
    columns = {
        name: np.array([value.copy() if isinstance(value, dict) else value for _ in ids], dtype=object)
        for name, value in each.items()
    }
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)


def main(model: str, rewards_file: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    custom = {"path": rewards_file, "name": "compute_score"}
    compute_score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": custom}}))
    manager = NaiveRewardManager(tokenizer, 0, compute_score=compute_score)
    rewards = manager(batch(tokenizer, [r"\boxed{84}", r"\boxed{85}"]))
    gsm8k = from_verl(default_compute_score, "openai/gsm8k")
    task = Task("t", "12*7?", "84")
    scores = [gsm8k.verify(said, task).reward for said in ("12*7\n#### 84", "#### 85", "84")]
    print(json.dumps([rewards.tolist(), rewards.shape[1] - len(PAD), scores]))


if __name__ == "__main__":
    main(*sys.argv[1:])
