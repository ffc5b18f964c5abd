"""Tasks and environments: everything here is light (no torch, no Ray, no vLLM)."""

from gymnasium.envs.registration import register

from envs.arithmetic import ArithmeticTasks
from envs.base import TextEnv, TextSpace
from envs.single_turn import SingleTurnEnv
from envs.tasks import FileTasks, TaskSource, load_tasks, render_prompt

for _name, _tasks in (
    ("Tasks", "arithmetic"),
    ("Arithmetic", "arithmetic"),
    ("SelfCorrect", "self_correct(arithmetic)"),
    ("ToolUse", "tool_use(arithmetic)"),
):
    register(f"reasoner/{_name}-v0", "envs.registered:TasksEnv", kwargs={"tasks": _tasks})

__all__ = [
    "ArithmeticTasks",
    "FileTasks",
    "SingleTurnEnv",
    "TaskSource",
    "TextEnv",
    "TextSpace",
    "load_tasks",
    "render_prompt",
]
