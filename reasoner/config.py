"""The configuration: one frozen tree, read from TOML and dotted flags.

Every key has a help text with its unit, a check, and a default. An unknown key is refused with the
nearest known one; an impossible value is refused before anything expensive starts.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    model_validator,
)

from reasoner.errors import UsageError
from reasoner.plugins import function_name


def _named_function(kind: str, names: Sequence[str]) -> BeforeValidator:
    """One of the names, `module:function`, or a function, which becomes the latter."""

    def check(value: Any) -> Any:
        if callable(value):
            return function_name(kind, value)
        if value in names or (isinstance(value, str) and ":" in value):
            return value
        raise ValueError(f"expected one of {', '.join(names)}, or module:function")

    return BeforeValidator(check)


def _two_numbers(value: Any) -> Any:
    """The flag `0.2,0.28` is the `[0.2, 0.28]` of a file."""
    if isinstance(value, str):
        value = tuple(part for part in value.split(",") if part)
    if value is None or (isinstance(value, (list, tuple)) and len(value) == 2):
        return value
    raise ValueError("expected two numbers, lower and upper, such as 0.2,0.28")


Clip = Annotated[tuple[NonNegativeFloat, NonNegativeFloat] | None, BeforeValidator(_two_numbers)]
Estimator = Annotated[str, _named_function("estimator", ("grpo", "dr_grpo", "rloo", "reinforce_pp"))]
Loss = Annotated[str, _named_function("loss", ("cispo", "ppo_clip", "gspo", "reinforce"))]

_WHOLE = (
    "training samples the whole distribution, because the learner cannot score tokens of a cut or penalised "
    "one: leave it out"
)
_ONE_CLIP = (
    "the two clips are one key: learner.clip = [low, high] in a file, --learner.clip low,high as a flag"
)
#: What is not to be configured (any more): the value that changes nothing (accepted in files; None: there is
#: none), and why no other is.
REFUSED: dict[str, tuple[float | None, str]] = {
    "rollout.top_p": (1, _WHOLE),
    "rollout.top_k": (0, _WHOLE),
    "rollout.min_p": (0, _WHOLE),
    "rollout.repetition_penalty": (1, _WHOLE),
    "rollout.presence_penalty": (0, _WHOLE),
    "rollout.frequency_penalty": (0, _WHOLE),
    "learner.weight_decay": (0, "updates decay no weights; kl_coef holds the policy near the base model"),
    "learner.eps_low": (None, _ONE_CLIP),
    "learner.eps_high": (None, _ONE_CLIP),
}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TasksConfig(Section):
    source: str = Field(
        "arithmetic",
        description="what to train on: see `reasoner tasks`; several with weights: arithmetic*3,rg:chain_sum",
    )
    template: str = Field(
        "auto",
        description="prompt template: auto, base, chat, or a text with {prompt}; auto is chat when the "
        "model has a chat template",
    )
    curriculum: Literal["none", "adaptive"] = Field(
        "none",
        description="adaptive: families and difficulties that are solved half of the time come more often",
    )


class RolloutConfig(Section):
    groups_per_step: int = Field(32, ge=1, description="groups (tasks) in a training step")
    group_size: int = Field(16, ge=1, description="rollouts of each task, G")
    max_tokens: int = Field(128, ge=1, description="longest completion, tokens")
    temperature: float = Field(1.0, gt=0, le=10, description="sampling temperature")
    stop: tuple[str, ...] = Field((), description="texts that end a completion, beside the end token")
    workers: int = Field(1, ge=1, description="Ray rollout workers")
    keep_kv: bool = Field(
        False,
        description="completions that a weight update falls into keep their KV cache instead of recomputing "
        "it; only with max_staleness > 0",
    )


class VerifierConfig(Section):
    name: str = Field(
        "auto",
        description="auto (what each task names, else math), math, module:attribute or FILE.py:attribute",
    )
    processes: int = Field(1, ge=1, description="verifier processes of each rollout worker")
    timeout_s: float = Field(
        0.0, ge=0, description="wall-clock kill of one verification, seconds; 0: what the verifier declares"
    )


class ServerKeys(Section):
    replicas: int = Field(1, ge=1, description="vLLM servers started here")
    addresses: tuple[str, ...] = Field((), description="use these running vLLM servers instead (URLs)")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="weights on the server")
    context_tokens: int = Field(
        0, ge=0, description="longest prompt + completion, tokens; 0: what the run needs"
    )
    max_num_seqs: int = Field(512, ge=1, description="sequences decoded at once by one server")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of one server on CPU, GiB")
    gpu_memory_utilization: float = Field(
        0.85, gt=0, le=1, description="share of a GPU's memory for one server"
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs of one server")
    threads: int = Field(1, ge=1, description="CPU threads of one server")
    startup_timeout_s: float = Field(
        300.0, gt=0, description="give a server this long to become healthy, seconds"
    )


class LearnerKeys(Section):
    estimator: Estimator = Field(
        "rloo",
        description="advantage estimator: grpo, dr_grpo, rloo (baseline over the group), reinforce_pp (over "
        "the batch), or module:function of your own",
    )
    batch_normalise: bool = Field(True, description="divide advantages by their deviation over the batch")
    loss: Loss = Field(
        "cispo",
        description="policy-gradient loss: cispo, ppo_clip, gspo, reinforce, or module:function of your own",
    )
    aggregation: Literal["prompt", "token", "sequence", "constant"] = Field(
        "prompt", description="how token losses are averaged: by prompt, token, sequence, or a constant"
    )
    clip: Clip = Field(
        None,
        description="how far below and above 1 the ratio is clipped (ppo_clip, gspo), as 0.2,0.28; unset: "
        "the loss's own",
    )
    ratio_cap: float = Field(
        4.0,
        ge=0,
        description="importance ratios to the policy that sampled are cut to this; 0: not cut (cispo), left "
        "out (reinforce, ppo_clip, gspo)",
    )
    kl_coef: float = Field(0.0, ge=0, description="weight of the KL to the base model; 0: no reference model")
    mask_truncated: bool = Field(False, description="leave truncated rollouts out instead of scoring them")
    zero_variance: Literal["drop", "top_up", "keep"] = Field(
        "drop", description="groups whose rewards are all equal: drop, top_up (sample others instead), keep"
    )
    retire_pass_rate: float = Field(
        0.9,
        gt=0,
        le=1,
        description="a task of a finite set is retired once its pass rate reaches this; 1: never",
    )
    lr: float = Field(3e-4, gt=0, description="AdamW learning rate")
    warmup_steps: int = Field(5, ge=0, description="linear learning-rate warm-up, steps")
    decay: Literal["none", "linear"] = Field(
        "linear", description="learning-rate decay to 0 over the run's steps"
    )
    grad_clip: float = Field(0.5, gt=0, description="largest gradient norm")
    minibatches: int = Field(1, ge=1, description="optimizer steps a batch")
    micro_batch_tokens: int = Field(16384, ge=16, description="tokens of one forward pass")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="compute type; master weights are fp32"
    )
    lora_rank: int = Field(
        0, ge=0, description="train LoRA adapters of this rank and send only these; 0: all weights"
    )
    ranks: int = Field(1, ge=1, description="learner processes the model is sharded over (FSDP2)")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda")
    threads: int = Field(2, ge=1, description="CPU threads of each learner process")


class EvalConfig(Section):
    every: int = Field(15, ge=0, description="evaluate every so many steps; 0: only first and last")
    problems: int = Field(256, ge=1, description="held-out problems, and as many out-of-distribution ones")
    samples: int = Field(2, ge=1, description="samples of each problem")


class CheckpointConfig(Section):
    every: int = Field(30, ge=0, description="save every so many steps; 0: only the last")
    keep: int = Field(3, ge=1, description="checkpoints kept")


class ClusterConfig(Section):
    address: str = Field(
        "", description="Ray cluster: empty starts one on this machine, auto or host:port joins"
    )
    colocate: bool = Field(
        False, description="learner and servers share the GPUs: servers sleep while the learner works"
    )


class Config(Section):
    """`train(Config(...))`; the same tree as TOML and as dotted flags."""

    model: str = Field("embedded", description="embedded, smollm2, a model directory, a run, or a hub name")
    name: str = Field("", description="name of the run under runs_dir; empty: the date and time")
    runs_dir: str = Field("runs", description="where runs are kept")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of tasks, sampling and learner")
    steps: int = Field(120, ge=1, description="training steps")
    time_limit_s: float = Field(0.0, ge=0, description="stop and save after this long, seconds; 0: never")
    max_staleness: int = Field(0, ge=0, description="policy versions a rollout may lag behind; 0: on-policy")

    tasks: TasksConfig = TasksConfig()
    rollout: RolloutConfig = RolloutConfig()
    verifier: VerifierConfig = VerifierConfig()
    server: ServerKeys = ServerKeys()
    learner: LearnerKeys = LearnerKeys()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            known = {key for key, _, _ in config_keys()}
            for key, value in given.items():
                if not any(k.startswith(f"{key}.") for k in known):
                    _check_known(key, known, "Config")
                elif isinstance(value, Mapping):
                    for nested in _dotted(value, f"{key}."):
                        _check_known(nested, known, "Config")
                elif not isinstance(value, BaseModel):
                    raise UsageError(f"{key} in Config is a section with keys of its own, got {value!r}")
        return given

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.rollout.group_size < 2 and self.learner.estimator in ("grpo", "dr_grpo", "rloo"):
            raise ValueError(
                f"rollout.group_size is {self.rollout.group_size}, but the estimator "
                f"{self.learner.estimator} compares rollouts of one group: use at least 2, or "
                "learner.estimator = reinforce_pp"
            )
        context = self.server.context_tokens
        if context and self.rollout.max_tokens >= context:
            raise ValueError(
                f"rollout.max_tokens ({self.rollout.max_tokens}) leaves no room for a prompt in "
                f"server.context_tokens ({context})"
            )
        if self.learner.minibatches > self.rollout.groups_per_step:
            raise ValueError("learner.minibatches is larger than rollout.groups_per_step")
        name = Path(self.name)
        if self.name and (name.is_absolute() or len(name.parts) != 1 or name.parts[0] in (".", "..")):
            raise ValueError(f"name {self.name!r} is not a plain name: it must stay inside {self.runs_dir}/")
        if self.cluster.colocate and self.max_staleness:
            raise ValueError("cluster.colocate runs samplers and learner in turn: it needs max_staleness = 0")
        if self.cluster.colocate and self.learner.ranks > 1:
            raise ValueError("cluster.colocate is for one GPU: it needs learner.ranks = 1")
        if self.cluster.colocate and self.server.addresses:
            raise ValueError(
                "cluster.colocate cannot put servers to sleep that somebody else started (server.addresses)"
            )
        if self.rollout.keep_kv and self.cluster.colocate:
            raise ValueError(
                "rollout.keep_kv has nothing to keep with cluster.colocate: sleeping servers forget their KV"
            )
        if self.rollout.keep_kv and self.server.addresses:
            raise ValueError(
                "rollout.keep_kv needs servers that the run starts: vLLM's HTTP server (server.addresses) "
                "keeps the KV of running completions only together with its prefix cache, which others share"
            )
        return self


def config_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every key as (dotted name, default, description), in order."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from config_keys(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info.default, info.description or ""


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads TOML, lays dotted overrides over it, validates. Raises UsageError with one clear message."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(Path(path).read_text())
        except FileNotFoundError:
            raise UsageError(f"no such config file: {path}") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise UsageError(f"cannot read {path} as TOML: {e}") from None
        tree.pop("provenance", None)  # written into a run's own config.toml
    known = {key for key, _, _ in config_keys()}
    for key, (neutral, _) in REFUSED.items():
        section, _, leaf = key.partition(".")
        table = tree.get(section)
        if neutral is not None and isinstance(table, dict) and table.get(leaf) == neutral:
            del table[leaf]
    for key in _dotted(tree):
        _check_known(key, known, str(path))
    for key, value in (overrides or {}).items():
        _check_known(key, known, "the command line")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        raise UsageError("; ".join(_explain(error) for error in e.errors())) from None


def parse_overrides(args: Sequence[str]) -> dict[str, Any]:
    """`--learner.lr 1e-4 --eval.every=5` → {"learner.lr": "1e-4", …}; read as TOML, else as text."""
    known = {key: default for key, default, _ in config_keys()}
    overrides: dict[str, Any] = {}
    rest = list(args)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UsageError(f"unexpected argument {flag!r}: options are written --key.sub value")
        key, equals, text = flag[2:].partition("=")
        key = key.replace("-", "_")
        _check_known(key, set(known), "the command line")
        if not equals:
            if not rest:
                raise UsageError(f"--{key} needs a value")
            text = rest.pop(0)
        overrides[key] = text if isinstance(known[key], str) else _toml_value(text, known[key])
    return overrides


def config_toml(config: Config, provenance: Mapping[str, Any]) -> str:
    """The resolved configuration, with versions, seed and revision under `[provenance]`."""
    return tomlkit.dumps(
        {**config.model_dump(mode="json", exclude_none=True), "provenance": dict(provenance)}
    )


def _toml_value(text: str, default: Any) -> Any:
    if isinstance(default, tuple) and not text.startswith("["):
        return tuple(part for part in text.split(",") if part)
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_known(key: str, known: set[str], where: str) -> None:
    if key in known:
        return
    if key in REFUSED:
        raise UsageError(f"{key} in {where}: {REFUSED[key][1]}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    leaf = [k for k in sorted(known) if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    nearest = (leaf or near or [""])[0]
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    raise UsageError(f"unknown configuration key {key!r} in {where}{hint} (all keys: reasoner train --help)")


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if not isinstance(part, int))
    message = error["msg"].removeprefix("Value error, ")
    return message if not where else f"{where}: {message} (got {error['input']!r})"
