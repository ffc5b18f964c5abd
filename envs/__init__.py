"""Tasks and environments: everything here is light (no torch, no Ray, no vLLM)."""

from gymnasium.envs.registration import register

from envs.arithmetic import ArithmeticTasks
from envs.base import TextEnv, TextSpace
from envs.single_turn import SingleTurnEnv
from envs.tasks import FileTasks, TaskSource, load_tasks, render_prompt

register(id="reasoner/Arithmetic-v0", entry_point="envs.single_turn:arithmetic_env")

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
