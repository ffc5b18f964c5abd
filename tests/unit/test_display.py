import io
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from reasoner.display import Display, compact, duration, excerpt, plain_line, printable, shares, sparkline
from reasoner.logs import log_file
from reasoner.types import Rollout, Task, Verdict

SECONDS = {"rollout": 2.0, "verify": 0.05, "learn": 0.9, "sync": 0.1, "wait": 0.3, "total": 3.35}


def step(number: int, **others) -> dict:
    return {
        "step": number,
        "reward_mean": 0.5,
        "pass_rate": 0.25,
        "response_tokens_mean": 21.34,
        "entropy": None,
        "sampler_tokens_per_s": 5123.0,
        "seconds": SECONDS,
        **others,
    }


def sample(completion: str) -> Rollout:
    zeros = np.zeros(3, np.float32)
    mask = np.array([False, True, True])
    task = Task("t", "87+74-90", ("71", "71.0"))
    return Rollout(
        task,
        zeros.astype(np.int32),
        mask,
        zeros,
        zeros.astype(np.int32),
        completion,
        True,
        False,
        Verdict.wrong(),
    )


def shown(display_encoding: str = "utf-8", **update) -> str:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=display_encoding, errors="strict", newline="")
    console = Console(file=out, force_terminal=True, width=100, height=40, color_system=None)
    with Display(100, enabled=True, title="my run", console=console) as display:
        display.update(step(0, eval={"held_out": {"pass@1": 0.25}, "ood": {"pass@1": 0.0}}))
        display.update(**update)
    out.flush()
    text = raw.getvalue().decode(display_encoding)
    return text[text.rindex("my run") :]


def test_live_panel_shows_progress_numbers_times_and_a_sample():
    text = shown(
        metrics=step(40, eval={"held_out": {"pass@1": 0.75}, "ood": {"pass@1": 0.125}}),
        sample=sample("87+74=161;\\boxed{61}"),
        prompt_text="87+74-90=?\n",
    )
    for expected in (
        "step 40/100",
        "3:21 left",  # 60 steps of 3.35 s
        "held-out pass@1      0.750",
        "▃▆",
        "from 0.250",
        "out of distribution  0.125",
        "21.3 tokens",
        "sampled 5.1k tokens/s, learned - tokens/s",
        "rollout 60%",
        "learn 27%",
        "one rollout, 2 tokens, wrong (expected 71 or 71.0)",
        "87+74=161;\\boxed{61}",
    ):
        assert expected in text, text


def test_sampled_text_cannot_drive_the_terminal_nor_the_markup():
    text = shown(metrics=step(1), sample=sample("\x1b]0;owned\x07\x1b[2J[red]x[/red]\r"))
    assert "·]0;owned··[2J[red]x[/red]·" in text
    assert "\x1b]0" not in text and "\x1b[2J" not in text


def test_a_terminal_without_unicode_gets_ascii():
    text = shown(display_encoding="ascii", metrics=step(1), sample=sample("π → ∞"), prompt_text="é\n")
    assert "? ? ?" in text and "held-out pass@1" in text


def test_messages_such_as_alarms_are_in_the_log_too(tmp_path):
    with log_file(tmp_path / "driver.log"), Display(10, console=Console(file=io.StringIO())) as display:
        display.message("the policy has stopped exploring: 100 %")
    assert "the policy has stopped exploring: 100 %" in (tmp_path / "driver.log").read_text()


def test_without_a_terminal_there_is_one_line_a_step():
    out = io.StringIO()
    with Display(100, console=Console(file=out, width=40, soft_wrap=True)) as display:
        display.status("starting")
        display.update(step(1, eval={"held_out": {"pass@1": 0.5}}), sample("x"), "p")
        display.update(step(2))
        display.message("[saved]")
    assert out.getvalue().splitlines() == [
        "starting",
        "step 1/100  reward 0.500  pass 0.250  length 21.3  held-out 0.500  tokens/s 5123  3.35 s "
        "(rollout 2.00 verify 0.05 learn 0.90 sync 0.10 wait 0.30)  5:32 left",
        "step 2/100  reward 0.500  pass 0.250  length 21.3  tokens/s 5123  3.35 s "
        "(rollout 2.00 verify 0.05 learn 0.90 sync 0.10 wait 0.30)  5:28 left",
        "[saved]",
    ]


def test_a_line_leaves_out_what_is_missing():
    assert plain_line({"step": 0, "seconds": None, "eval": None}, 10) == "step 0/10"
    unscored = step(
        3, masked_rate=0.125, eval={"held_out": {"pass@1": 0.5, "masked_rate": 0.25}, "ood": None}
    )
    assert "pass 0.250 (12% unscored)  " in plain_line(unscored, 10)
    assert "held-out 0.500 (25% unscored)" in plain_line(unscored, 10)
    assert "unscored" not in plain_line(step(3, masked_rate=0.0), 10)
    assert "pass 0.250 (<1% unscored)" in plain_line(step(3, masked_rate=0.003), 10)


FAILING = """
from reasoner.display import Display
with Display(10) as display:
    display.status("working")
    display.update({"step": 1, "seconds": {"total": 1.0}})
    raise {error}
"""


@pytest.mark.parametrize("error", ["RuntimeError('boom')", "KeyboardInterrupt"])
def test_an_exception_restores_a_real_terminal(error):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING.replace("{error}", error)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    process.wait()
    os.close(ours)
    hidden, visible = seen.rfind(b"\x1b[?25l"), seen.rfind(b"\x1b[?25h")
    assert 0 <= hidden < visible < seen.rfind(b"Traceback"), seen
    assert b"step 1/10" in seen


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0], 10, (0, 1)) == "▁▅█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([3, 3], 5) == "▅▅"
    assert sparkline([float("nan"), 1, 2], 5) == "▁█"
    assert sparkline([], 5) == sparkline([1.0], 0) == ""
    assert sparkline([-5.0, 5.0], 5, (0, 1)) == "▁█"


def test_shares_fill_the_bar_exactly():
    assert shares([2, 1, 1], 8) == [4, 2, 2]
    assert shares([1, 1, 1], 4) == [2, 1, 1]
    assert shares([0, 0], 4) == [0, 0]
    assert sum(shares([0.1, 0.7, 0.3, 12.1], 40)) == 40


def test_small_formats():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 86399)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "23:59:59",
    ]
    assert [compact(v) for v in (None, 812.4, 5123, 2_300_000)] == ["-", "812", "5.1k", "2.3M"]
    assert printable("a\tb\nc\x00\x9b") == "a b\nc··"
    assert excerpt("a\nb\nc\nd\ne", 2) == "a\n[3 lines]\ne"
    assert excerpt("x" * 301, 2) == "x" * 100 + " [101 characters] " + "x" * 100
