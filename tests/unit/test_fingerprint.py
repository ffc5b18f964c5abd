import json

import pytest

from reasoner.errors import ReasonerError
from reasoner.fingerprint import code_hash, differences, read, record, source_hash
from reasoner.losses import find_loss


def test_a_resume_forgets_the_fingerprints_of_the_steps_it_undoes(tmp_path):
    assert read(tmp_path) == {}
    for step, threads in ((0, 1), (5, 2), (9, 3), (5, 4)):
        record(tmp_path, step, {"threads": threads})
    assert read(tmp_path) == {0: {"threads": 1}, 5: {"threads": 4}}
    assert json.loads((tmp_path / "fingerprints.jsonl").read_text().splitlines()[1])["after_step"] == 5


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "fingerprints.jsonl").write_text('{"threads": 1}\n')
    with pytest.raises(ReasonerError, match=r"fingerprints\.jsonl"):
        read(tmp_path)


def test_differences_name_what_was_recorded_and_what_is_here():
    recorded, here = {"threads": 2, "torch": "2.13", "old": 1}, {"threads": 1, "torch": "2.13", "new": 2}
    assert differences(recorded, here) == {"threads": [2, 1], "old": [1, None], "new": [None, 2]}
    assert differences(here, here) == {}
    assert len(code_hash()) == 64


def test_another_version_of_an_own_loss_has_another_hash(tmp_path):
    file = tmp_path / "own.py"
    hashes = []
    for factor in (1, 2, 1):
        file.write_text(f"def loss(t, *numbers):\n    return {factor} * t.logprobs.sum(), {{}}\n")
        hashes.append(source_hash(find_loss(f"{file}:loss")))
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(source_hash(find_loss("cispo"))) == 64 and source_hash(len) is None
