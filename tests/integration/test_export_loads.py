"""An exported directory is an ordinary model to transformers."""

import shutil

import pytest
from recorded import record, rollout

from reasoner.checkpoint import CheckpointStore
from reasoner.export import export
from reasoner.models import embedded_path
from reasoner.types import Group, Task

pytestmark = pytest.mark.slow


def test_transformers_loads_the_export_and_it_answers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task = Task("t", "2+2", "4", "sum", 1.0)
    run = record(tmp_path / "run", [[Group(task, (rollout(task, r"\boxed{4}", True),))]])
    CheckpointStore(run).save(1, lambda to: shutil.copytree(embedded_path(), to, dirs_exist_ok=True), {})
    out = export(str(run), tmp_path / "model")
    tokenizer, model = (loader.from_pretrained(out) for loader in (AutoTokenizer, AutoModelForCausalLM))
    prompt = tokenizer("2+2=?\n", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert r"\boxed{" in tokenizer.decode(answer)
