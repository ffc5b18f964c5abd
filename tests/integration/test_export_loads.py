"""An exported directory is an ordinary model: to transformers, and to the server that its card starts."""

import json
import re
import shutil

import pytest
import torch
from recorded import record, rollout
from served import served
from tiny_model import MAX_DIFF
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoner.checkpoint import CheckpointStore
from reasoner.export import export
from reasoner.models import embedded_path
from reasoner.types import Group, Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a server starts in minutes on a busy machine
TOKENS = 24


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(embedded_path()).float()


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    """The export of a run whose weights are no longer the base model's."""
    home = tmp_path_factory.mktemp("exported")
    task = Task("t", "2+2", "4", "sum", 1.0)
    run = record(
        home / "run",
        [[Group(task, (rollout(task, r"\boxed{4}", True),))]],
        config=f'model = "embedded"\n[rollout]\nmax_tokens = {TOKENS}\n',
    )

    def write(to):
        shutil.copytree(embedded_path(), to, dirs_exist_ok=True)
        torch.manual_seed(0)
        changed = AutoModelForCausalLM.from_pretrained(embedded_path()).float()
        with torch.no_grad():
            for weights in changed.parameters():
                weights.add_(torch.randn_like(weights) * 0.1 * weights.std())
        changed.save_pretrained(to)

    CheckpointStore(run).save(1, write, {})
    return export(str(run), home / "my-model")


def greedy(model, prompt_ids):
    """(tokens, their log-probabilities), as transformers computes them."""
    ids = torch.tensor([prompt_ids])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    with torch.no_grad():
        logprobs = model(whole).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    new = whole[0, len(prompt_ids) :]
    return new.tolist(), logprobs.gather(-1, new[:, None])[:, 0].tolist()


def test_transformers_loads_the_export_and_it_answers_by_its_own_weights(exported, base):
    tokenizer, model = (loader.from_pretrained(exported) for loader in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("2+2=?\n")["input_ids"]
    (ours, said), (before, of_base) = greedy(model, prompt), greedy(base, prompt)
    assert r"\boxed{" in tokenizer.decode(before)
    assert ours != before or max(abs(a - b) for a, b in zip(said, of_base, strict=True)) > 10 * MAX_DIFF


def test_the_server_of_the_card_answers_as_the_exported_weights_do(exported):
    """`vllm serve` as the card has it, the card's own request, greedily: tokens and log-probabilities."""
    (body,) = re.findall(r"-d '(.*)'$", (exported / "README.md").read_text(), re.M)
    asked = json.loads(body) | {"temperature": 0, "logprobs": 1, "return_token_ids": True}
    with served(exported) as client:
        (choice,) = client.post("/v1/completions", json=asked).raise_for_status().json()["choices"]
    model = AutoModelForCausalLM.from_pretrained(exported).float()
    tokens, logprobs = greedy(model, choice["prompt_token_ids"])
    assert choice["token_ids"] == tokens
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(logprobs, abs=MAX_DIFF)
