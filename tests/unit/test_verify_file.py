"""`reasoner verify`: one line out for each line in, whatever is on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasoner.errors import UsageError
from reasoner.verify_file import LineError, read_line, verify_file

LINES = [
    b'{"id": "a", "gold": "84", "pred": "\\\\boxed{84}"}',
    b'{"id": 7, "gold": 84, "pred": "\\\\boxed{85}"}',
    b"not json",
    b"",
    b'{"id": "e", "gold": ["1", 2], "pred": "\\\\boxed{2}"}',
    b'{"id": "f", "gold": "1"}',
    b"[1, 2]",
    b'{"id": "h", "gold": null, "pred": "1"}',
    b'{"id": "i", "gold": "\\\\frac{1}{", "pred": "\\\\boxed{1}"}',
    b'{"id": "j", "gold": "1", "pred": ""}',
    b"\xff\xfe",
    b'{"id": "l", "gold": "\\ud800", "pred": "\\ud800"}',
    b"[" * 100_000,
    b'{"id": null, "gold": "1", "pred": "1"}',
]


def test_every_line_is_answered_in_order(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(LINES) + b"\n")
    counts = verify_file(source, out=out, workers=2)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["line"] for r in records] == list(range(1, len(LINES) + 1))
    assert [r["status"] for r in records] == [
        "correct", "wrong", "error", "error", "correct", "error", "error", "error", "bad_reference",
        "unparsed", "error", "correct", "error", "correct",
    ]  # fmt: skip
    assert [r["id"] for r in records[:6]] == ["a", 7, None, None, "e", "f"]
    assert list(records[0]) == ["id", "line", "status", "reward", "extracted", "detail", "seconds"]
    assert records[2]["reward"] is None and "not JSON" in records[2]["detail"]
    assert sum(counts.values()) == len(LINES) and counts["error"] == 7


def test_explain_adds_how(tmp_path: Path, capsys) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(LINES[0] + b"\n")
    verify_file(source, explain=True)
    record = json.loads(capsys.readouterr().out)
    assert "extracted (box): 84" in record["explain"]
    assert record["detail"] == "equal integers"


def test_bad_usage(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(LINES[0])
    with pytest.raises(UsageError, match="cannot read"):
        verify_file(tmp_path / "missing.jsonl")
    with pytest.raises(UsageError, match="unknown verifier"):
        verify_file(source, verifier="maths")
    with pytest.raises(UsageError, match="overwrite the input"):
        verify_file(source, out=source)
    with pytest.raises(UsageError, match="cannot write"):
        verify_file(source, out=tmp_path / "no" / "such" / "dir")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"id": 1e999, "gold": "1", "pred": "1"}', "finite number"),
        (b'{"id": 1, "gold": NaN, "pred": "1"}', "NaN is no JSON number"),
        (b'{"id": 1, "gold": 1e999, "pred": "1"}', "gold must be"),
        (b'{"id": 1, "gold": ["1", null], "pred": "1"}', "gold must be"),
        (b'\xef\xbb\xbf{"id": 1, "gold": "1"}', "missing field: pred"),
        (b'{"id": {}, "gold": "1", "pred": "1"}', "id must be"),
        (b'{"id": 1, "gold": true, "pred": "1"}', "gold must be"),
        (b'{"id": 1, "gold": [], "pred": "1"}', "gold must be"),
        (b'{"id": 1, "gold": "1", "pred": ["1"]}', "pred must be"),
    ],
)
def test_unreadable_fields(raw: bytes, message: str) -> None:
    with pytest.raises(LineError, match=message):
        read_line(raw, 1)
