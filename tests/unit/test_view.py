import json
import math
import time

import pytest
from recorded import record, rollout
from starlette.testclient import TestClient

from reasoner.errors import UsageError
from reasoner.journal import Journal
from reasoner.types import Group, SamplingParams, Task
from reasoner.view.filters import parse
from reasoner.view.index import RolloutIndex
from reasoner.view.server import make_app
from reasoner.view.tokens import pieces

LAST = 4


def group(index: int, step: int) -> Group:
    family = "sum" if index % 2 else "product"
    task = Task(f"t{index}", f"{index}+1=? 100%_sure", str(index + 1), family, float(index % 3))
    right = rollout(task, rf"{index}+1={index + 1};\boxed{{{index + 1}}}", True, version=step - 1)
    return Group(task, (right, rollout(task, r"<b>Blurted</b>\boxed{0}", False, version=step - 2)), index)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    steps = [[group(10 * step + i, step) for i in range(3)] for step in range(1, LAST + 1)]
    return record(tmp_path_factory.mktemp("runs") / "first", steps)


@pytest.fixture(scope="module")
def client(run):
    with RolloutIndex(run) as index:
        until(lambda: index.state()["steps"]["indexed"] == LAST)
        yield TestClient(make_app(run, "embedded", 9, index), base_url="http://127.0.0.1")


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def test_the_state_says_what_can_be_chosen(client):
    state = client.get("/api/state").json()
    assert (state["name"], state["step"], state["total_steps"], state["rollouts"]) == ("first", LAST, 9, 24)
    assert (state["families"], state["fates"], state["problems"]) == (["product", "sum"], ["trained"], {})
    assert state["steps"] == {"indexed": LAST, "files": LAST, "first": 1, "last": LAST}


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", 24),
        ("step=2", 6),
        ("step=2..3", 12),
        ("step=..2", 12),
        ("status=correct", 12),
        ("status=correct,wrong", 24),
        ("status=timeout", 0),
        ("family=sum", 8),
        ("family=sum&step=1", 2),
        ("reward=0.5..", 12),
        ("tokens=23", 12),  # <b>Blurted</b>\boxed{0}
        ("text=bLuRtEd", 12),
        ("text=100%25_sure", 24),  # in the prompt; % and _ mean themselves
        ("text=100_sure", 0),
        ("text=%25%25", 0),
        ("text=';DROP TABLE rollouts;--", 0),
        ("task_id=t20", 2),
        ("version=-1", 0),  # no policy sampled these
        ("version=3", 3),
        ("truncated=1", 0),
        ("waiting=1", 0),
        ("fate=trained", 24),
        ("flag=constant_answer", 0),
    ],
)
def test_filters(client, query, total):
    found = client.get(f"/api/rollouts?{query}").json()
    assert found["total"] == total == sum(found["statuses"].values())
    assert len(found["rows"]) == total


def test_sorting_and_means(client):
    found = client.get("/api/rollouts?sort=-tokens&step=1").json()
    lengths = [row["tokens"] for row in found["rows"]]
    assert lengths == sorted(lengths, reverse=True)
    assert found["reward_mean"] == 0.5
    assert math.isclose(found["tokens_mean"], sum(lengths) / len(lengths))
    assert [row["step"] for row in client.get("/api/rollouts?sort=step").json()["rows"]][:6] == [1] * 6


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("steps=3", "unknown filter 'steps'"),
        ("step=x", "expected a number or a range"),
        ("step=nan", "expected a number or a range"),
        ("status=right", "expected one of correct"),
        ("sort=completion", "sort 'completion'"),
        ("page=-1", "page '-1'"),
        ("page=999999999999999999", "page '999999999999999999'"),
        ("truncated=yes", "expected 1 or 0"),
    ],
)
def test_a_wrong_address_is_answered_with_what_is_wrong(client, query, message):
    answer = client.get(f"/api/rollouts?{query}")
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_one_rollout_token_by_token(client):
    row = client.get("/api/rollout?group=20&rollout=0").json()
    tokens = row["per_token"]
    assert "".join(tokens["text"][3:]) == row["completion"] == r"20+1=21;\boxed{21}"
    assert tokens["action"] == [False] * 3 + [True] * 18
    assert tokens["logprob"][2:4] == [None, -0.5]
    assert tokens["ratio"][2] is None and math.isclose(tokens["ratio"][3], math.exp(-0.1), rel_tol=1e-6)
    assert (tokens["advantage"], tokens["version"][2:4], row["step"]) == (0.5, [None, 1], 2)
    assert [mate["status"] for mate in row["mates"]] == ["correct", "wrong"]
    for query in ("group=20", "group=20&rollout=x", "group=99&rollout=0", f"group={10**19}&rollout=0"):
        assert client.get(f"/api/rollout?{query}").status_code == 400


def test_groups_and_tasks(client):
    rollouts = client.get("/api/group?group=31").json()["rollouts"]
    assert [(r["rollout"], r["status"], r["flags"]) for r in rollouts] == [
        (0, "correct", None),
        (1, "wrong", None),
    ]
    assert len(client.get("/api/task?id=t31").json()["rollouts"]) == 2
    assert client.get("/api/task?id=none").json()["rollouts"] == []


def test_every_rollout_of_a_task_is_on_some_page(tmp_path):
    """20 steps with 20 rollouts of one task: the first page ends within step 13."""
    task = Task("again", "2+2", "4")
    members = tuple(rollout(task, str(i % 5), i % 5 == 4) for i in range(20))
    run = record(tmp_path / "again", [[Group(task, members, step)] for step in range(1, 21)])
    with RolloutIndex(run) as index:
        until(lambda: index.state()["rollouts"] == 400)
        client = TestClient(make_app(run, "embedded", 9, index), base_url="http://127.0.0.1")
        first, second = (client.get(f"/api/task?id=again&page={page}").json() for page in (0, 1))
        assert (first["page"], first["pages"], len(first["rollouts"])) == (0, 2, 256)
        assert len(second["rollouts"]) == 144 and second["rollouts"][-1]["step"] == 20
        assert [s["step"] for s in first["steps"]] == list(range(1, 21)) and first["steps"] == second["steps"]
        assert first["steps"][12] == {"step": 13, "rollouts": 20, "right": 4, "tokens": 1.0}
        assert client.get("/api/task?id=again&page=x").status_code == 400
        assert client.get("/api/rollout?group=20&rollout=19").json()["mates"][19]["status"] == "correct"


def test_the_page_loads_nothing_from_elsewhere_and_only_loopback_names_may_ask(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/view.js", "/view.css"):
        assert "://" not in client.get(path).text
    assert client.get("/api/state", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/../config.toml").status_code == 404


def test_curves_are_those_of_the_report(client):
    sections = client.get("/api/curves").json()["sections"]
    assert sections[0]["title"] == "What it learned"
    assert sections[0]["charts"][0].startswith("<svg")


def test_the_index_follows_a_run_that_goes_on(tmp_path):
    run = record(tmp_path / "live", [[group(1, 1)]])
    with RolloutIndex(run) as index:
        until(lambda: index.state()["rollouts"] == 2)
        with Journal(run) as journal:
            journal.append_groups(1, [group(2, 2)], SamplingParams(64))
            index.refresh()
            assert index.find(parse({"waiting": "1"}))["total"] == 2
            assert index.full(2, 1)["completion"].startswith("<b>")
            journal.mark_dropped(2, [2], "filtered")
            journal.compact(2).result()
            index.refresh()
            assert index.find(parse({"waiting": "1"}))["total"] == 0
            assert [row["fate"] for row in index.find(parse({"step": "2"}))["rows"]] == ["filtered"] * 2
            journal.resume(
                1, policy_version=0
            )  # step 2 never happened; its group was sampled by a lost policy
            index.refresh()
            assert index.find(parse({"step": "2"}))["total"] == 0
        (run / "rollouts" / "step_000003.parquet").write_bytes(b"PAR1 but not really")
        index.refresh()
        assert "step_000003.parquet" in index.state()["problems"]
        assert index.find(parse({}))["total"] == 2
        (run / "rollouts" / "step_000003.parquet").unlink()
        index.refresh()
        assert index.state()["problems"] == {}


def test_a_look_that_failed_is_forgotten_after_one_that_did_not(tmp_path, monkeypatch):
    run = record(tmp_path / "mended", [[group(1, 1)]])
    with RolloutIndex(run) as index:
        until(lambda: index.state()["rollouts"] == 2)

        def fail():
            raise OSError("the disk is away")

        with monkeypatch.context() as patch:
            patch.setattr(index, "refresh", fail)
            until(lambda: index.poke() or "rollouts" in index.problems)
        until(lambda: index.poke() or index.state()["problems"] == {})


def test_the_flags_of_an_audit_are_filters(tmp_path):
    run = record(tmp_path / "flagged", [[group(1, 1)]])
    with RolloutIndex(run) as index:
        finding = {"check": "constant_answer", "flagged": [[1, 1]]}
        (run / "audit.json").write_text(json.dumps({"findings": [finding]}))
        index.refresh()
        (row,) = index.find(parse({"flag": "constant_answer"}))["rows"]
        assert (row["group_index"], row["rollout"]) == (1, 1)
        rollouts = index.rollouts("group_index", 1)["rollouts"]
        assert [r["flags"] for r in rollouts] == [None, ["constant_answer"]]
        client = TestClient(make_app(run, "embedded", 9, index), base_url="http://127.0.0.1")
        assert client.get("/api/audit").json()["audit"]["findings"] == [finding]
        for broken in ("{", "[1]", '{"findings": [{"check": "x", "flagged": [1]}]}'):
            (run / "audit.json").write_text(broken)
            index.refresh()
            assert "audit.json" in index.state()["problems"]
            answer = client.get("/api/audit")
            assert answer.status_code == 400 and "`reasoner audit" in answer.json()["error"]
        (run / "audit.json").unlink()
        index.refresh()
        assert (index.state()["problems"], index.state()["flags"]) == ({}, {})


def test_characters_of_several_tokens_stand_at_the_last_one():
    from reasoner.models import embedded_path

    tokenizer = embedded_path() / "tokenizer.json"
    assert pieces(tokenizer, "é=".encode()) == ["", "é", "="]
    assert pieces(None, [7]) == ["‹7›"]


def test_text_is_never_sql():
    wanted = parse({"text": "x' OR 1=1 --", "family": "'; DROP TABLE rollouts"})
    assert "DROP" not in wanted.where and "1=1" not in wanted.where
    with pytest.raises(UsageError):
        parse({"sort": "step; DROP TABLE rollouts"})
