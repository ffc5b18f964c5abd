"""The logs of a process: text for people, lines of JSON with the same records for machines."""

import json
import logging
import re
from datetime import UTC, datetime, timedelta

from reasoner.logs import at_step, log_file

log = logging.getLogger("rollouts.fleet")


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_every_record_is_a_line_of_json_with_its_fields(tmp_path):
    with log_file(tmp_path / "logs" / "worker_3.log"):
        log.info("server %s: %s → %s", "a", "starting", "serving")
        at_step(7)
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("it failed")
    begin, first, second = lines(tmp_path / "logs" / "worker_3.jsonl")
    assert (begin["message"], begin["logger"]) == ("started", "reasoner.logs")
    assert list(first) == ["time", "level", "kind", "process", "pid", "step", "logger", "message"]
    assert first["message"] == "server a: starting → serving" and first["level"] == "INFO"
    assert (first["kind"], first["process"], first["logger"]) == ("worker", "worker_3", "rollouts.fleet")
    assert first["step"] is None and second["step"] == 7
    assert second["message"] == "it failed" and second["level"] == "ERROR"
    assert second["traceback"].startswith("Traceback (most recent call last):\n")
    assert second["traceback"].endswith("ValueError: two\nlines")
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert first["time"] < second["time"], "lines of several files can be sorted as text"


def test_the_text_beside_it_has_the_same_records(tmp_path):
    with log_file(tmp_path / "driver.log"):
        log.warning("late")
    text = (tmp_path / "driver.log").read_text().splitlines()[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING \d+ rollouts.fleet: late", text)


def test_no_message_breaks_a_line(tmp_path):
    odd = 'a "quoted" line\nand another, \x00, \udc80 and \u2028'
    with log_file(tmp_path / "learner-1.log"):
        log.info("%s", odd)
        log.info("more", extra={"server": "a", "path": tmp_path})
    _, first, second = lines(tmp_path / "learner-1.jsonl")
    assert first["message"] == odd
    assert (first["kind"], first["process"]) == ("learner", "learner-1")
    assert second["server"] == "a" and second["path"] == str(tmp_path)


def test_after_the_block_nothing_is_written_and_no_step_is_known(tmp_path):
    with log_file(tmp_path / "one.log"):
        at_step(3)
    with log_file(tmp_path / "two.log"):
        log.info("only here")
    assert len(lines(tmp_path / "one.jsonl")) == 1
    assert lines(tmp_path / "two.jsonl")[1]["step"] is None
    assert "rollouts.fleet: only here" in (tmp_path / "two.log").read_text()
