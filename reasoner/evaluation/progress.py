"""What a person watching an evaluation sees: a bar with tokens/s and time left, or now and then a line."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from reasoner.display import compact, duration

LINE_EVERY_S = 10.0


class Progress:
    """Counts samples towards `total`. `quiet` shows nothing; otherwise a bar on a terminal, else lines."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._bar: RichProgress | None = None
        self._total = self._done = self._tokens = 0
        self._started = self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def start(self, total: int, there: int) -> None:
        """`total` samples are to be made, beside `there` that are stored already."""
        self._total, self._done, self._tokens = total, 0, 0
        self._started = self._last_line = time.monotonic()
        if there:
            self.say(f"{there} samples are there already")
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("sampling"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]} tokens/s"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task("", total=total, rate="-")
            self._bar.start()

    def add(self, samples: int, tokens: int) -> None:
        self._done += samples
        self._tokens += tokens
        elapsed = max(1e-9, time.monotonic() - self._started)
        rate = compact(self._tokens / elapsed)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = elapsed / max(1, self._done) * (self._total - self._done)
            self.say(f"{self._done}/{self._total} samples  {rate} tokens/s  {duration(left)} left")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
