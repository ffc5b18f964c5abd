"""What `rollouts.server` does before and around vLLM; the engine itself is in tests/integration."""

import json
import subprocess
import sys

import pytest

from reasoner.errors import UsageError
from rollouts import server, vllm_core
from rollouts.naming import actor_name
from rollouts.server import ServerConfig, log_tail


def test_bad_configurations_are_usage_errors():
    for bad in (
        {"device": "tpu"},
        {"tensor_parallel_size": 2},
        {"max_num_seqs": 0},
        {"threads": 0},
        {"kv_cache_gib": 0.0},
    ):
        with pytest.raises(UsageError, match=next(iter(bad))):
            ServerConfig(model="m", **bad)


def test_missing_model_directory_is_named_before_anything_starts(tmp_path):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        server.start_server(ServerConfig(model=missing), name="s", log_dir=tmp_path)
    with pytest.raises(UsageError, match="has no config.json"):
        server.start_server(ServerConfig(model=str(tmp_path)), name="s", log_dir=tmp_path)


def test_a_hub_name_is_left_to_vllm():
    server._check_model("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_an_actor_is_named_after_its_run_and_never_waits_for_a_name_to_be_free(tmp_path):
    first, again = (actor_name(tmp_path / "mine" / "logs", "server-0") for _ in range(2))
    assert first["name"] == again["name"] == "mine/server-0"
    assert first["namespace"] != again["namespace"]


def test_log_tail(tmp_path):
    path = tmp_path / "server_a.log"
    assert "no log" in log_tail(path)
    path.write_text("")
    assert "empty log" in log_tail(path)
    path.write_text("".join(f"line {i}\n" for i in range(100)))
    tail = log_tail(path, lines=3).splitlines()
    assert [line.strip() for line in tail] == ["line 97", "line 98", "line 99"]


def test_end_tokens_are_collected_from_everywhere(tmp_path):
    class Text:
        def to_dict(self):
            return {"eos_token_id": 2}

    class Fake:
        class model_config:
            hf_text_config = Text()

    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2], "top_p": 0.5}))
    config = ServerConfig(model=str(tmp_path), stop_token_ids=(9,))
    assert vllm_core.stop_token_ids(config, Fake) == [2, 5, 9]


def test_importing_the_clients_loads_neither_torch_nor_vllm():
    code = (
        "import sys, rollouts.server, rollouts.sampler, rollouts.control, rollouts.scripted;"
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
