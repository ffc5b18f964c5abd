import pytest

from reasoner.config import Config, config_keys, config_toml, load_config, parse_overrides
from reasoner.errors import UsageError


def config(*flags):
    return load_config(None, parse_overrides(flags))


def test_fewer_than_sixty_keys_and_each_has_help():
    keys = list(config_keys())
    assert len(keys) < 60
    assert all(description for _, _, description in keys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lerner.lr", "1"], "did you mean 'learner.lr'"),
        (["--lr", "1"], "did you mean 'learner.lr'"),
        (["--rollout.group_size", "1"], "use at least 2"),
        (["--rollout.top_p", "0.9"], "rollout.top_p .* whole distribution"),
        (["--rollout.top-k=40"], "rollout.top_k .* whole distribution"),
        (["--learner.weight_decay=0.1"], "kl_coef"),
        (["--learner.eps_low", "0.2"], r"learner.eps_low .* learner.clip = \[low, high\]"),
        (["--learner.eps-high=0.28"], "--learner.clip low,high"),
        (["--learner.clip", "0.2"], "learner.clip: expected two numbers"),
        (["--learner.clip", "0.2,0.28,0.3"], "learner.clip: expected two numbers"),
        (["--learner.clip", "0.2,high"], "learner.clip: .*valid number"),
        (["--learner.clip=-0.2,0.28"], "learner.clip: .*greater than or equal to 0"),
        (["--rollout.keep_kv", "true", "--cluster.colocate", "true"], "rollout.keep_kv .* cluster.colocate"),
        (
            ["--rollout.keep_kv=true", "--server.addresses", "http://a:1"],
            "keep_kv needs servers that the run",
        ),
        (["--learner.ratio_cap=-1"], "learner.ratio_cap: .*greater than or equal to 0"),
        (["--learner.estimator", "rlo"], "learner.estimator: expected one of grpo"),
        (["--server.context_tokens", "100", "--rollout.max_tokens", "100"], "no room for a prompt"),
        (["--name", "../escape"], "must stay inside runs/"),
        (["--name", "a/b"], "must stay inside runs/"),
        (["--learner.lr", "fast"], "learner.lr"),
        (["--learner.lr"], "needs a value"),
        (["steps", "3"], "written --key.sub value"),
        (["--learner.loss", "ppo"], "learner.loss"),
        (["--learner.minibatches", "64"], "minibatches"),
        (["--cluster.colocate", "true", "--max_staleness", "2"], "max_staleness = 0"),
        (["--cluster.colocate", "true", "--learner.ranks", "2"], "learner.ranks = 1"),
    ],
)
def test_bad_input_is_one_clear_usage_error(flags, message):
    with pytest.raises(UsageError, match=message):
        config(*flags)


def test_group_of_one_is_fine_for_a_batch_baseline():
    assert config("--rollout.group_size", "1", "--learner.estimator", "reinforce_pp").rollout.group_size == 1


def test_flags_lie_over_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('steps = 7\n[learner]\nlr = 3e-4\n[server]\naddresses = ["http://a:1"]\n')
    loaded = load_config(
        path, parse_overrides(["--learner.lr=1e-5", "--server.addresses", "http://a:1,http://b:2"])
    )
    assert (loaded.steps, loaded.learner.lr) == (7, 1e-5)
    assert loaded.server.addresses == ("http://a:1", "http://b:2")


@pytest.mark.parametrize("text", ["steps = ", "[unknown]\nx = 1", "stepps = 3"])
def test_bad_toml(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load_config(path)


def test_what_is_refused_may_stand_in_a_file_where_it_changes_nothing(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[rollout]\ntop_p = 1.0\n[learner]\nweight_decay = 0.0\n")
    assert load_config(path) == Config()
    path.write_text("[rollout]\ntop_p = 0.9\n")
    with pytest.raises(UsageError, match=r"rollout.top_p in .*c.toml"):
        load_config(path)


def test_an_own_function_is_recorded_by_its_name():
    assert config("--learner.loss", "mine:loss").learner.loss == "mine:loss"
    assert config("--learner.estimator=my/file.py:mean").learner.estimator == "my/file.py:mean"
    learner = Config(learner={"loss": config_toml, "estimator": load_config}).learner
    assert (learner.loss, learner.estimator) == ("reasoner.config:config_toml", "reasoner.config:load_config")
    with pytest.raises(UsageError, match="module of its own"):
        Config(learner={"loss": lambda *tensors: None})


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ({"stepz": 3}, "'stepz' .*did you mean 'steps'"),
        ({"learner": {"lrr": 1}}, "'learner.lrr' .*'learner.lr'"),
    ],
)
def test_an_unknown_key_in_python_is_refused_with_the_nearest_one(values, nearest):
    with pytest.raises(UsageError, match=nearest):
        Config(**values)


def test_a_clip_is_a_pair_in_a_flag_and_in_a_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[learner]\nclip = [0.2, 0.28]\n")
    assert load_config(path).learner.clip == (0.2, 0.28)
    assert config("--learner.clip", "0.1,0.3").learner.clip == (0.1, 0.3)
    assert config("--learner.clip=[0, 0.3]").learner.clip == (0.0, 0.3)
    assert config().learner.clip is None
    path.write_text("[learner]\neps_high = 0.28\n")
    with pytest.raises(UsageError, match=r"learner.eps_high in .*c.toml: .*learner.clip = \[low, high\]"):
        load_config(path)


def test_completions_recompute_their_kv_unless_told_otherwise():
    assert not config().rollout.keep_kv
    assert config("--rollout.keep_kv", "true").rollout.keep_kv, "harmless where nothing is under way"
    assert config("--max_staleness=2", "--rollout.keep-kv=true").rollout.keep_kv


def test_missing_file():
    with pytest.raises(UsageError, match="no such config file"):
        load_config("nowhere.toml")


def test_resolved_config_round_trips(tmp_path):
    resolved = config(
        "--seed", "5", "--rollout.stop", "a,b", "--learner.clip", "0.1,0.3", "--rollout.keep_kv=true"
    )
    path = tmp_path / "config.toml"
    path.write_text(config_toml(resolved, {"python": "3.11"}))
    assert load_config(path) == resolved


def test_frozen():
    with pytest.raises(Exception, match="frozen"):
        Config().steps = 3
