"""Pre-training: the tokenizer, packing, masking, the schedule, and a tiny run that must learn."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import AutoTokenizer, Qwen3ForCausalLM  # noqa: E402

from envs.arithmetic import ArithmeticTasks  # noqa: E402
from reasoner.models import embedded_path  # noqa: E402
from reasoner.pretrain import (  # noqa: E402
    PackedBatch,
    PretrainSettings,
    _tensors,
    build_model,
    build_tokenizer,
    lr_factor,
    packed_batches,
    pretrain,
    save,
)
from reasoner.pretrain_corpus import END, END_ID, PAD_ID, Mixture, document, encode  # noqa: E402
from reasoner.pretrain_eval import is_right, pass_at_k, style  # noqa: E402
from reasoner.types import Task  # noqa: E402

TOKENIZER = build_tokenizer()


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_round_trips(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= len(text.encode())


def test_tokens_are_bytes_and_three_more():
    assert TOKENIZER.encode("87+74=?\n") == list(b"87+74=?\n")
    assert TOKENIZER.encode("\\boxed{5}") == [256, *b"5}"]
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (END_ID, PAD_ID)
    ids = [256, *b"5}", END_ID]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "\\boxed{5}"


def test_the_fast_encoding_is_the_tokenizer_s():
    for index in range(100):
        text = document(0, index).text
        assert encode(text) == TOKENIZER.encode(text)


def test_packing_keeps_every_page_whole_and_in_order():
    batches = packed_batches(0, 4, Mixture())
    pages = []
    for batch in (next(batches), next(batches)):
        found = {}
        for ids, docs in zip(batch.token_ids, batch.document_ids, strict=True):
            for d in set(docs[docs >= 0]):
                found[d] = ids[docs == d].tolist()
            assert (ids[docs < 0] == PAD_ID).all()
        assert sorted(found) == list(range(batch.documents))
        assert (batch.document_ids >= 0).mean() > 0.8
        pages += [found[d] for d in range(batch.documents)]
    assert pages == [encode(document(0, i).text) for i in range(len(pages))]


def test_targets_and_mask_stay_within_a_document():
    batch = PackedBatch(np.array([[5, 6, 7, 8, 258]]), np.array([[0, 0, 1, 1, -1]], dtype=np.int16), 2)
    ids, targets, mask = _tensors(batch)
    assert ids.tolist() == [[5, 6, 7, 8, 258]]
    assert targets.tolist() == [[6, -100, 8, -100, -100]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_a_packed_document_is_predicted_as_if_it_were_alone():
    model = build_model(3).eval()
    ids, _, mask = _tensors(next(packed_batches(0, 1, Mixture())))
    first = encode(document(0, 0).text)
    second = encode(document(0, 1).text)
    with torch.no_grad():
        packed = model(input_ids=ids, attention_mask=mask).logits[0]
        alone = model(input_ids=torch.tensor([second])).logits[0]
    assert ids[0, len(first) : len(first) + len(second)].tolist() == second
    torch.testing.assert_close(packed[len(first) : len(first) + len(second)], alone, atol=1e-4, rtol=1e-3)


def test_the_schedule_warms_up_stays_and_falls():
    plan = PretrainSettings(steps=100, warmup=0.1, decay=0.5)
    assert lr_factor(0.0, plan) == pytest.approx(0.1)
    assert lr_factor(0.3, plan) == 1.0
    assert lr_factor(0.75, plan) == pytest.approx(0.5)
    assert lr_factor(0.99, plan) == pytest.approx(0.02)


def test_progress_is_by_steps_or_by_time_whichever_is_further():
    assert PretrainSettings(steps=100).progress(25, 1e9) == 0.25
    plan = PretrainSettings(steps=100, minutes=2)
    assert plan.progress(25, 30.0) == 0.25
    assert plan.progress(25, 90.0) == 0.75


def test_the_model_is_small_and_tied_and_loads_as_it_is_saved(tmp_path):
    model = build_model(0)
    assert sum(p.numel() for p in model.parameters()) <= 3_500_000
    assert torch.equal(build_model(0).model.embed_tokens.weight, model.model.embed_tokens.weight)
    save(model, tmp_path)
    loaded, tokenizer = Qwen3ForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert tokenizer.encode("1+2=?\n\\boxed{3}" + END) == encode("1+2=?\n\\boxed{3}" + END)
    assert tokenizer.chat_template is None
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == END_ID
    assert "_from_model_config" not in generation
    assert not {"temperature", "top_p", "top_k", "do_sample", "repetition_penalty"} & set(generation)


def test_a_tiny_run_learns_and_writes_a_record(tmp_path):
    plan = PretrainSettings(rows=2, threads=1, compile=False)
    record = pretrain(tmp_path, plan, steps=8, log=lambda line: None)
    losses = list(record["loss"].values())
    assert losses[-1] < np.log(259)
    assert record["pages"] > 40 and record["tokens"] > 2 * 128 * 8 * 0.7
    assert json.loads((tmp_path / "pretraining.json").read_text())["settings"]["steps"] == 8
    assert Qwen3ForCausalLM.from_pretrained(tmp_path).config.head_dim == 32


def test_measurement_by_hand():
    task = Task("t", "1+2", "3")
    assert is_right("\\boxed{4}no,1+2=3;\\boxed{3}", task)
    assert not is_right("\\boxed{3}no,1+2=4;\\boxed{4}", task) and not is_right("3", task)
    assert [style(c) for c in ("\\boxed{3}", "1+2=3;\\boxed{3}", "1+2=4;no,1+2=3;")] == [
        "direct",
        "working",
        "corrected",
    ]
    assert pass_at_k(1, 4, 1) == pytest.approx(0.25)
    assert pass_at_k(2, 4, 2) == pytest.approx(1 - 1 / 6)


@pytest.mark.skipif(not (embedded_path() / "model.safetensors").exists(), reason="no embedded model yet")
def test_the_embedded_model_ships_and_writes_boxed_answers():
    path: Path = embedded_path()
    assert sum(f.stat().st_size for f in path.iterdir()) <= 8_000_000
    tokenizer, model = AutoTokenizer.from_pretrained(path), Qwen3ForCausalLM.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) <= 3_500_000
    right = 0
    for task in ArithmeticTasks().split("held_out", 4):
        inputs = tokenizer(task.prompt + "=?\n", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.startswith("\\boxed{") and text.endswith("}")
        right += is_right(text, task)
    assert right >= 1
