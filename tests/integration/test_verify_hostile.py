"""`reasoner verify` on files nobody wants to get: one line out for each line in, each within its deadline."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from reasoner.errors import UsageError
from reasoner.types import STATUSES
from reasoner.verify_file import verify_file
from verifiers.corpora import load_corpus

DEADLINE_S = 3.0
HOSTILE_ANSWERS = [
    "(" * 200_000,
    r"\frac{" * 50_000,
    "{" * 100_000 + "}" * 100_000,
    r"\boxed{" * 30_000 + "1" + "}" * 30_000,
    "9" * 1_000_000,
    r"\boxed{" + "9^{" * 300 + "9" + "}" * 300 + "}",
    "x" * 1_000_000,
    "1," * 300_000,
    " " * 1_000_000,
    "the answer is " * 70_000,
    "<think>" * 100_000,
    "$" * 100_001,
    "- " * 100_000 + "1",
    "\\" * 100_001,
    "1.234." * 100_000,
    "one hundred " * 50_000,
    r"\begin{align}" * 20_000,
    "a\0b",
    "\ud800\udfff\ud800",
    "\ufeff84\u202e48",
    "__import__('os').system('touch executed')",
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{(10^{400})!}",
    r"\boxed{\int_0^1 x^{x^{x^x}} dx}",
]


def hostile_lines(seed: int, count: int) -> list[bytes]:
    """Lines of every bad kind, and mutated good ones."""
    rng = random.Random(seed)
    cases = [case for name in ("ordinary", "adversarial") for case in load_corpus(name)]
    lines = [json.dumps({"id": i, "gold": "84", "pred": pred}) for i, pred in enumerate(HOSTILE_ANSWERS)]
    lines += [json.dumps({"id": "g", "gold": gold, "pred": "84"}) for gold in HOSTILE_ANSWERS]
    odd = [None, True, 84, 8.4, [], ["84", 84], {"a": 1}, [[1]], "", "84", "\0", r"\frac{1}{", 10**400]
    lines += [json.dumps({"id": 1, "gold": rng.choice(odd), "pred": rng.choice(odd)}) for _ in range(40)]
    raw = [line.encode() for line in lines]
    raw += [b"", b"\r", b"null", b"[]", b"{", b"\xff\xfe\x00", b"\x00" * 100, b"[" * 200_000, b'"' * 1000]
    raw += [b'{"id": 1, "id": 2, "gold": "1", "pred": "1"}\r', b'{"a":' * 50_000, b"1" * 100_000, b"NaN"]
    for _ in range(count):
        case = rng.choice(cases)
        line = bytearray(json.dumps({"id": case.id, "gold": case.gold, "pred": case.pred}).encode())
        for _ in range(rng.choice([0, 1, 2, 5])):
            at = rng.randrange(len(line))
            line[at : at + rng.randint(0, 3)] = rng.choice([b"", b"\x00", b"\\", b"{", b"\xc3", b"9", b'"'])
        raw.append(bytes(line).replace(b"\n", b" "))
    rng.shuffle(raw)
    return raw


@pytest.mark.slow
def test_every_hostile_line_is_answered_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = hostile_lines(seed=7, count=300)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(lines) + b"\n")
    verify_file(source, out=out, workers=2, timeout_s=DEADLINE_S)
    records = [json.loads(line, parse_constant=pytest.fail) for line in out.read_text().splitlines()]
    assert [record["line"] for record in records] == list(range(1, len(lines) + 1))
    assert all(record["status"] in STATUSES for record in records)
    assert max(record["seconds"] for record in records) < DEADLINE_S + 1
    assert not (tmp_path / "executed").exists()
    hostile = [r for r, line in zip(records, lines, strict=True) if line.startswith(b'{"id": "g"')]
    assert hostile and all(r["status"] != "correct" for r in hostile)


def test_odd_files(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"")
    assert not verify_file(source, out=out) and out.read_text() == ""
    source.write_bytes(
        b'\xef\xbb\xbf{"id": 1, "gold": "84", "pred": "84"}\r\n\r\n{"id": 2, "gold": 84, "pred": "84"}'
    )
    assert verify_file(source, out=out) == {"correct": 2, "error": 1}
    with pytest.raises(UsageError, match="directory"):
        verify_file(tmp_path, out=out)


PLUG_IN = """
import os, sys, time

def judge(completion, task):
    if completion == "raise": raise ValueError("boo")
    if completion == "loop":
        while True: pass
    if completion == "sleep": time.sleep(60)
    if completion == "fork":
        os.fork()
        return True
    if completion == "print":
        print("noise"); os.write(1, b"noise"); sys.stdout.flush()
    if completion == "exit": os._exit(0)
    if completion == "recurse": return judge(completion, task)
    if completion == "nonsense": return {"score": 1}
    if completion == "nan": return float("nan")
    if completion == "none": return None
    return completion == "84"

judge.timeout_s = 1.0
"""


def test_a_plug_in_that_misbehaves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plug_in.py").write_text(PLUG_IN)
    kinds = ["raise", "loop", "sleep", "fork", "print", "exit", "recurse", "nonsense", "nan", "none"]
    expected = ["error", "error", "error", "correct", "wrong", "error", "error", "error", "error", "masked"]
    source = tmp_path / "in.jsonl"
    lines = [
        json.dumps({"id": kind, "gold": "84", "pred": pred}) for kind in kinds for pred in (kind, "84", "85")
    ]
    source.write_text("\n".join(lines))
    begun = time.monotonic()
    verify_file(source, verifier=f"{tmp_path / 'plug_in.py'}:judge", workers=2)
    assert time.monotonic() - begun < 60
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [r["status"] for r in records[::3]] == expected
    assert {r["status"] for r in records[1::3]} == {"correct"} and {r["status"] for r in records[2::3]} == {
        "wrong"
    }
    assert all(r["seconds"] < 2.0 for r in records)
    assert all(r["detail"] for r in records if r["status"] == "error")
