"""reasoning-gym through our source, environment and verifier."""

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs import SingleTurnEnv, load_tasks
from envs.reasoning_gym import ANY_ANSWER, ReasoningGymTasks, held_out, names
from reasoner.errors import UsageError
from reasoner.rollout_files import task_to_json
from reasoner.types import Task
from verifiers import load_verifier
from verifiers.reasoning_gym import answer_of, plain_expression

pytest.importorskip("reasoning_gym")

NO_GOLD = {"boxnet", "rush_hour"}  # they give no answer and keep none
SLOW = {"futoshiki", "knight_swap", "sokoban", "puzzle24", "intermediate_integration"}  # 0.2 to 1 s a problem


@pytest.mark.parametrize("initial", "abcdefghijklmnopqrstuvwxyz")
def test_every_generator_loads_generates_and_gives_full_marks_to_gold(initial):
    judge = load_verifier("auto")
    for name in (n for n in names() if n.startswith(initial) and n not in SLOW):
        task = ReasoningGymTasks(name).train(1)
        task_to_json(task)  # the journal takes it
        assert SingleTurnEnv(task).reset()[0] == task.prompt
        if name in NO_GOLD:
            assert task.reference == ANY_ANSWER
            continue
        verdict = judge.verify(f"so <answer>{task.reference}</answer>", task)
        assert verdict.is_correct and verdict.reward == 1, (name, verdict)
        other = judge.verify("<answer>neither here nor there</answer>", task)
        assert other.status in ("wrong", "unparsed"), (name, other)


def test_the_whole_way_as_a_gymnasium_environment():
    source = load_tasks("rg:chain_sum(min_terms=2,max_terms=2)")
    env = SingleTurnEnv(draw=source.train)
    check_env(env)
    vector = gymnasium.vector.SyncVectorEnv([lambda: SingleTurnEnv(draw=source.train)] * 2)
    observations, _ = vector.reset(seed=1)
    assert all("arithmetic" in text for text in observations)


def test_streams_are_pure_and_held_out_problems_are_never_trained_on():
    source, again = load_tasks("rg:gcd", 3), load_tasks("rg:gcd", 3)
    stream = [source.train(i) for i in range(150)]
    assert stream[120] == again.train(120)
    assert len({t.prompt for t in stream}) == 150
    assert [t.prompt for t in stream] != [load_tasks("rg:gcd", 4).train(i).prompt for i in range(150)]
    evaluated = source.split("held_out", 30)
    assert evaluated[:10] == load_tasks("rg:gcd", 9).split("held_out", 10)
    assert all(held_out(t.prompt) for t in evaluated) and not any(held_out(t.prompt) for t in stream)


def test_what_a_generator_prints_while_it_works_goes_nowhere(capsys):
    for index in range(3):
        load_tasks("rg:bf", seed=1).train(index)
    assert capsys.readouterr().out == ""


def test_levels_are_the_generators_curriculum():
    source = load_tasks("rg:chain_sum(levels=0|3)")
    tasks = [source.train(i) for i in range(40)]
    assert {t.difficulty for t in tasks} == {0.0, 3.0}
    length = {level: max(len(t.prompt) for t in tasks if t.difficulty == level) for level in (0.0, 3.0)}
    assert length[0.0] < length[3.0]
    assert {t.difficulty for t in source.split("ood", 3)} == {4.0}
    assert load_tasks("rg:chain_sum").split("ood", 3) == []


@pytest.mark.parametrize("name", ["maze", "simple_equations"])
def test_a_split_of_one_is_one(name):
    """None of their first 16 draws is held out."""
    assert (
        load_tasks(f"rg:{name}").split("held_out", 1)
        == load_tasks(f"rg:{name}").split("held_out", 3)[:1]
        != []
    )


def test_a_generator_with_few_problems_gives_as_many_as_it_has():
    assert 0 < len(load_tasks("rg:coin_flip").split("held_out", 500)) < 500


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rg:chain_sums", "no generator 'chain_sums': did you mean 'chain_sum'"),
        (
            "rg:chain_sum(min_term=2)",
            "no option 'min_term': did you mean 'min_terms'.*it has min_terms, max_terms",
        ),
        ("rg:chain_sum(seed=2)", "no option 'seed'"),
        ("rg:chain_sum(min_terms=5,max_terms=2)", "refuses .min_terms=5, max_terms=2.: .*max_terms must be"),
        ("rg:chain_sum(min_terms=many)", "refuses .min_terms='many'.: TypeError"),
        ("rg:chain_sum(levels=99)", "no level 99: its curriculum has levels 0 to"),
        ("rg:acre(levels=1)", "has no curriculum"),
        ("rg:chain_sum(5)", "'5' is no option"),
    ],
)
def test_bad_options_are_named(spec, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(spec)


def test_the_answer_is_what_stands_in_tags_or_a_box():
    assert answer_of("<think><answer>1</answer></think> <answer>\n1 2\n3 4\n</answer>") == "1 2\n3 4"
    assert answer_of("so it is \\boxed{7}") == "7"
    assert answer_of("I am not sure what they ask me for here, let me think about it") is None
    task = load_tasks("rg:gcd").train(0)
    assert load_verifier("auto").verify("", task).status == "unparsed"


@pytest.mark.parametrize("hack", ["oracle_answer", "entry['answer']", "[oracle_answer]", "print(1)"])
def test_scorers_that_evaluate_answers_do_not(hack):
    judge = load_verifier("auto")
    for name in ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"):
        task = ReasoningGymTasks(name).train(0)
        verdict = judge.verify(f"<answer>{hack}</answer>", task)
        assert verdict.status == "wrong" and verdict.reward < 0.1, (name, verdict)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("(3 + 4.5)*2**3/7", True),
        ("x*sin(x) + 1.5e3*log(x) + C", True),
        ("__import__('os').system('true')", False),
        ("x.__class__", False),
        ("open(x)", False),
        ("1 .real", False),
        ("(1).real", False),
        ("lambda: 1", False),
        ("1+" * 600, False),
    ],
)
def test_only_plain_expressions_reach_sympys_parser(text, plain):
    assert plain_expression(text) is plain


def test_code_in_an_answer_is_wrong_and_not_run(tmp_path):
    task = ReasoningGymTasks("countdown").train(0)
    target = tmp_path / "made"
    verdict = load_verifier("auto").verify(f"<answer>open('{target}', 'w')</answer>", task)
    assert verdict.status == "wrong" and verdict.detail == "not a plain expression" and not target.exists()


def test_what_json_does_not_know_in_an_entry_is_kept_as_text():
    task = ReasoningGymTasks("gsm_symbolic").train(65)  # its metadata holds a Fraction
    task_to_json(task)
    assert load_verifier("auto").verify(f"<answer>{task.reference}</answer>", task).is_correct


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("0.234375", True),
        ("15/64", True),
        ("0.2344", True),
        ("0", False),
        ("0.2", False),
        ("1/0", False),
        ("", False),
    ],
)
def test_the_beginning_of_a_probability_is_not_the_probability(answer, right):
    made = {"name": "coin_flip", "options": {}, "answer": "0.234375", "metadata": {}}
    task = Task("t", "p", "0.234375", metadata={"verifier": "reasoning_gym", "reasoning_gym": made})
    verdict = load_verifier("auto").verify(f"<answer>{answer}</answer>", task)
    assert verdict.is_correct == right and verdict.reward == right
