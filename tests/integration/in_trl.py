"""A step of TRL's trainer on the model in argv, rewarded by our pool and, beside it, by the same function
called directly. Prints what TRL logs. (test_peers.py)"""

import json
import sys

sys.modules["vllm"] = None  # type: ignore[assignment]  # not used here, and TRL would take long to import it

from datasets import Dataset  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from reasoner import Task  # noqa: E402
from verifiers.adapters import for_trl  # noqa: E402
from verifiers.pool import VerifierPool  # noqa: E402


def even(completion, task):
    """Of some completions it says nothing."""
    return None if len(completion) % 3 == 0 else len(completion) % 2 == 0 and task.reference == "4"


def directly(completions, answer, **columns):
    judged = [even(c, Task("", "", a)) for c, a in zip(completions, answer, strict=True)]
    return [None if reward is None else float(reward) for reward in judged]


def main(model: str) -> None:
    settings = GRPOConfig(
        output_dir="out",
        max_steps=1,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=12,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
    tasks = [{"prompt": "2+2=", "answer": "4"}, {"prompt": "2+3=", "answer": "5"}]
    with VerifierPool(f"{__file__}:even") as pool:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=[for_trl(pool), directly],
            args=settings,
            train_dataset=Dataset.from_list(tasks),
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        )
        trainer.train()
    print(json.dumps(trainer.state.log_history[0]))


if __name__ == "__main__":
    main(sys.argv[1])
