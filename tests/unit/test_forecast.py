import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import forecast as benchmark
from reasoner.cli import main
from reasoner.errors import UsageError
from reasoner.forecast import (
    Measurement,
    Sigmoid,
    fit,
    forecast,
    measurements,
    planned_compute,
    trains_on_what_it_tests,
)

TRUE = Sigmoid(start=0.2, asymptote=0.9, steepness=1.5, midpoint=20.0)


def run_of(steps: int, noise: float = 0.0, every: int = 10, seed: int = 0) -> list[dict]:
    """Metrics of a run that follows TRUE, 1 FLOP a step (half training, half sampling)."""
    rng = np.random.default_rng(seed)

    def rate(compute: float) -> float:
        return float(np.clip(TRUE(compute) + rng.normal(0, noise), 0, 1))

    entries = [{"step": 0, "pass_rate": None, "eval": {"held_out": evaluation(rate(0))}}]
    for step in range(1, steps + 1):
        entry = {"step": step, "train_flops": 0.5, "sample_flops": 0.5, "pass_rate": rate(step - 1)}
        entry |= {"groups": 32, "rollouts": 512}
        if step % every == 0:
            entry["eval"] = {"held_out": evaluation(rate(step))}
        entries.append(entry)
    return entries


def evaluation(rate: float) -> dict:
    return {"pass@1": rate, "problems": 256, "samples": 2}


def test_the_sigmoid_starts_at_r0_is_halfway_at_c_mid_and_ends_at_a():
    assert TRUE(0.0) == pytest.approx(0.2)
    assert TRUE(20.0) == pytest.approx(0.55)
    assert TRUE(1e9) == pytest.approx(0.9, abs=1e-6)
    assert TRUE(80.0) == pytest.approx(0.2 + 0.7 / (1 + 0.25**1.5))


def test_variance_counts_the_answers_of_a_task_as_related():
    point = Measurement(1, 1.0, 0.5, answers=512, tasks=32, training=True)
    assert point.variance(0.5, rho=0.0) == pytest.approx(0.25 / 512)
    assert point.variance(0.5, rho=1.0) == pytest.approx(0.25 / 32), "as many as there are tasks"
    assert point.variance(1.0, rho=0.0) > 0


def test_compute_of_a_measurement_is_what_was_spent_before_it():
    points = measurements(run_of(20), "pass@1", with_training=True, warmup_steps=17)
    assert [(p.step, p.compute, p.training) for p in points] == [
        (0, 0.0, False),
        (10, 10.0, False),
        (18, 17.0, True),
        (19, 18.0, True),
        (20, 19.0, True),
        (20, 20.0, False),
    ]
    assert all(not p.training for p in measurements(run_of(20), "pass@1", with_training=False))
    with pytest.raises(UsageError, match="choose pass@1"):
        measurements(run_of(1), "reward", with_training=True)


def test_the_fit_finds_the_curve_that_made_the_points():
    points = measurements(run_of(100), "pass@1", with_training=True)
    curve, rho = fit(points)
    assert curve.asymptote == pytest.approx(0.9, abs=0.005)
    assert curve.steepness == pytest.approx(1.5, abs=0.05)
    assert curve.midpoint == pytest.approx(20.0, rel=0.03)
    assert rho == 0.0, "no noise, so none beyond that of independent answers"


def test_the_forecast_does_not_look_ahead():
    entries = run_of(100, noise=0.02)
    changed = [e | ({"pass_rate": 0.0, "train_flops": 99.0} if e["step"] > 40 else {}) for e in entries]
    first, second = (forecast(e, steps=100, use=0.4, repeats=10) for e in (entries, changed))
    assert first.final == second.final and first.final_compute == second.final_compute == 100.0
    assert first.step == 40
    assert forecast(entries, steps=100, repeats=5).measured is None, "it has seen the end: nothing to compare"


def test_intervals_hold_what_happens():
    """A 95 % interval that holds the final evaluation in fewer than 4 of 6 runs is too narrow (p < 0.003)."""
    found = [forecast(run_of(100, 0.02, every=20, seed=s), steps=100, use=0.4, repeats=30) for s in range(6)]
    assert sum(f.final.low <= f.measured <= f.final.high for f in found) >= 4
    assert all(f.asymptote.low <= f.asymptote.value <= f.asymptote.high for f in found)
    assert np.mean([abs(f.errors["sigmoid"]) for f in found]) < np.mean(
        [abs(f.errors["last_value"]) for f in found]
    )


def test_the_benchmark_averages_errors_and_counts_the_intervals_that_held(monkeypatch, tmp_path, capsys):
    one = forecast(run_of(60), steps=60, use=0.5, repeats=2)
    final = replace(one.final, value=0.8, low=0.7, high=0.85)
    runs = {
        "a": replace(one, final=final, last_value=0.5, asymptote_one=0.9, measured=0.8),
        "b": replace(one, final=final, last_value=0.8, asymptote_one=1.0, measured=0.9),
    }
    monkeypatch.setattr(benchmark, "forecast_run", lambda run, use: (runs[run], []))
    monkeypatch.setattr("benchmarks.figures.RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["forecast", "a", "b", "--shares", "0.3"])
    benchmark.main()
    assert "| 30% | 0.050 | 0.200 | 0.100 | 1 of 2 |" in capsys.readouterr().out
    written = json.loads((tmp_path / "forecast.json").read_text())
    values = {f["name"]: (f["value"], f["low"], f["high"]) for f in written["figures"]}
    assert values["forecast_error_last_value_30"] == pytest.approx((0.2, 0.1, 0.3))
    assert values["forecast_intervals_held_30"] == (0.5, None, None)
    runs["b"] = replace(one, measured=None)
    with pytest.raises(SystemExit):
        benchmark.main()


def test_planned_compute_carries_the_recent_steps_on():
    entries = [
        {"step": s, "train_flops": f, "sample_flops": 1.0} for s, f in enumerate([0, 9, 9, 9, 9, 2, 2])
    ]
    assert planned_compute(entries, 3) == 30.0
    assert planned_compute(entries, 10) == 46.0 + 4 * 3.0


def test_too_few_measurements_are_said_with_their_number():
    with pytest.raises(UsageError, match=r"3 measurements of pass@1 up to step 20.*eval.every"):
        forecast(run_of(20), steps=100, with_training=False)


def test_only_streams_of_fresh_tasks_measure_what_the_evaluation_does(tmp_path):
    from reasoner.config import Config

    (tmp_path / "t.jsonl").write_text('{"prompt": "1+1", "reference": "2"}\n')
    assert trains_on_what_it_tests(Config())
    assert not trains_on_what_it_tests(Config(tasks={"source": str(tmp_path / "t.jsonl")}))


def test_the_command_forecasts_and_compares(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("steps = 60\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in run_of(60, noise=0.01)))
    out, svg = tmp_path / "f.json", tmp_path / "f.svg"
    args = ["forecast", str(run), "--use", "0.5", "--json", str(out), "--svg", str(svg)]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert "what happened" in result.output and "baseline: last value" in result.output
    saved = json.loads(out.read_text())
    assert saved["step"] == 30 and saved["final_step"] == 60
    assert saved["errors"]["sigmoid"] == pytest.approx(saved["final"]["value"] - saved["measured"])
    assert svg.read_text().startswith("<svg")
    result = CliRunner().invoke(main, ["forecast", str(run), "--use", "0.05"])
    assert result.exit_code == 2 and "measurements of pass@1" in result.output
    assert CliRunner().invoke(main, ["forecast", str(tmp_path)]).exit_code == 2
