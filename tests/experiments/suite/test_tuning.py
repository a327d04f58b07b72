"""Tuning finds the best of what it tries by successive halving, looks beyond the edges, and stores what it did."""

import json
import math
from dataclasses import replace

import pytest

from experiments.runs.runner import Result
from experiments.settings.errors import ConfigError
from experiments.settings.file import read_settings
from experiments.settings.optimizers import LBFGS, Adam, Training
from experiments.suite import tuning
from experiments.suite.file import load_baselines, load_comparison, taking_part
from experiments.suite.rows import config_of, load_tuned, ours, row_of, row_tuned_for, tuned_file, tuned_for
from tests.experiments.conftest import ROOT

COMPARISON = """
name: tiny
title: Tiny
about: A trial.
reference: None.
problem:
  family: classification
  data: {name: digits, train_examples: 200}
  model: {kind: mlp, hidden: [4], activation: tanh}
budgets:
  hessian_free: {steps: 3}
  first_order: {epochs: 9, batches: {gradient: 64}}
  lbfgs: {steps: 12}
baselines: [Adam]
tuning_seeds: [100, 101]
"""
BASELINES = """
baselines:
  - {label: Adam, optimizer: adam, set: {schedule: cosine}, tune: {learning_rate: [0.01, 0.1, 1.0], b2: [0.9, 0.99]}}
  - {label: L-BFGS, optimizer: lbfgs, tune: {memory_size: [2, 4]}}
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The folder with the comparison in `tiny.yaml`; the baselines are those above."""
    (tmp_path / "tiny.yaml").write_text(COMPARISON, encoding="utf-8")
    (tmp_path / "baselines.yaml").write_text(BASELINES, encoding="utf-8")
    monkeypatch.setattr(tuning, "load_baselines", lambda: load_baselines(tmp_path / "baselines.yaml"))
    return tmp_path


def load_comparison_of(folder):
    (folder / "tiny.yaml").write_text(COMPARISON, encoding="utf-8")
    return load_comparison(folder / "tiny.yaml")


def distance(config):
    """Least at a learning rate of 0.003 (beyond the grid) with b2 = 0.99; a rate above 0.5 diverges."""
    rate, b2 = config.training.learning_rate, config.training.b2
    loss = abs(math.log10(rate / 0.003)) + (b2 - 0.99) ** 2 + config.seed / 1e6
    return {"train_loss": loss, "status": "diverged" if rate > 0.5 else "finished"}


def tuned(files, console):
    (path,) = tuning.main([str(files / "tiny.yaml")], runs=files / "runs", console=console, jobs=1, tuned=files)
    return path


def test_the_best_of_all_candidates_is_chosen_also_beyond_the_edge_of_the_grid(files, stand_in, console):
    stand_in(distance)
    found = read_settings(tuned(files, console))
    (adam,) = found["baselines"]
    tried = {(trial["learning_rate"], trial["b2"]) for trial in adam["trials"]}
    best = min((t for t in tried if t[0] <= 0.5), key=lambda t: abs(math.log10(t[0] / 0.003)) + (t[1] - 0.99) ** 2)
    assert adam["chosen"] == {"learning_rate": best[0], "b2": best[1]} == {"learning_rate": 0.001, "b2": 0.99}
    assert min(tried)[0] == 0.0001  # one beyond the best shows that there is nothing better
    assert found["tuned_for"]["tuning_seeds"] == [100, 101]
    assert {trial["score"] for trial in adam["trials"] if trial["learning_rate"] == 1.0} == {math.inf}


def test_every_round_keeps_the_best_third_and_gives_it_three_times_the_budget(files, stand_in, console):
    stand_in(distance)
    (adam,) = read_settings(tuned(files, console))["baselines"]
    by_share = {share: [t for t in adam["trials"] if t["share"] == share] for share in (0.1111, 0.3333, 1.0)}
    assert [len(trials) for trials in by_share.values()] == [10, 4, 2]
    for before, after in ((0.1111, 0.3333), (0.3333, 1.0)):
        best = sorted(by_share[before], key=lambda trial: trial["score"])[: len(by_share[after])]
        key = lambda trial: (trial["learning_rate"], trial["b2"])  # noqa: E731
        assert sorted(map(key, best)) == sorted(map(key, by_share[after]))


def test_with_a_target_the_sooner_counts_and_what_never_reaches_it_comes_after(tmp_path):
    comparison = replace(load_comparison_of(tmp_path), target=0.5)

    def result(name, *losses, status="finished"):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {"train_loss": loss, "examples": i, "gradient_equivalents": i, "seconds": 0.0}
            for i, loss in enumerate(losses)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Result(folder, {"status": status, "train_loss": losses[-1]})

    soon = result("soon", 3.0, 0.5, 0.3, 0.2, 0.49)
    late = result("late", 3.0, 0.9, 0.8, 0.7, 0.5)
    never = result("never", 3.0, 0.9, 0.8, 0.7, 0.6)
    diverged = result("diverged", 3.0, 0.1, math.inf, status="diverged")
    assert [tuning.score(comparison, [one]) for one in (soon, late, never, diverged)] == [-1.75, -1.0, 0.6, math.inf]
    assert tuning.score(replace(comparison, target=None), [soon]) == 0.49


def test_runs_have_their_share_of_the_budget_and_the_seeds_of_the_tuning(files, stand_in, console):
    seen = []
    stand_in(lambda config: seen.append(config) or distance(config))
    tuned(files, console)
    assert {config.seed for config in seen} == {100, 101}
    assert {round(config.training.epochs, 6) for config in seen} == {1.0, 3.0, 9.0}
    assert {config.training.batches.gradient for config in seen} == {64}
    assert {config.training.schedule for config in seen} == {"cosine"}


def test_a_row_of_hessian_free_is_tuned_for_the_budget_of_hessian_free(files):
    comparison = load_comparison(files / "tiny.yaml")
    longer = replace(comparison, budgets=replace(comparison.budgets, hessian_free=Training(steps=99)))
    second = {row.label: row for row in load_baselines(ROOT / "configs/baselines.yaml")}["hessian_free (tuned)"]
    adam = load_baselines(files / "baselines.yaml")[0]
    assert row_tuned_for(comparison, second) != row_tuned_for(longer, second)
    assert row_tuned_for(comparison, adam) == row_tuned_for(longer, adam)
    assert tuned_for(comparison) == tuned_for(longer)


def test_what_was_chosen_is_what_the_comparison_runs(files, stand_in, console):
    comparison = load_comparison(files / "tiny.yaml")
    baselines = taking_part(comparison, load_baselines(files / "baselines.yaml"))
    with pytest.raises(ConfigError, match="not tuned yet; run: python -m experiments tune"):
        load_tuned(comparison, baselines, files / "tuned")
    stand_in(distance)
    (files / "tuned").mkdir()
    tuned(files, console).rename(files / "tuned" / "tiny.yaml")
    (row,) = load_tuned(comparison, baselines, files / "tuned")
    training = config_of(comparison, row, seed=0).training
    assert isinstance(training, Adam)
    assert (training.learning_rate, training.b2, training.epochs) == (0.001, 0.99, 9.0)


def test_a_budget_goes_to_its_kind_of_optimizer(files):
    comparison = load_comparison(files / "tiny.yaml")
    adam, lbfgs = load_baselines(files / "baselines.yaml")
    assert taking_part(comparison, [adam, lbfgs]) == [adam]
    limited = config_of(comparison, row_of(comparison, lbfgs, {"memory_size": 4}), seed=0, share=0.5).training
    assert isinstance(limited, LBFGS)
    assert (limited.steps, limited.memory_size, limited.batches.gradient) == (6, 4, "full")
    assert config_of(comparison, ours(comparison), seed=0).training.steps == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuning_seeds: [100, 101]", "tuning_seeds: [10]", "tuning_seeds must not be among the seeds"),
        ("baselines: [Adam]", "baselines: [Adan]", "there is no baseline 'Adan'; there are Adam, L-BFGS"),
        ("hessian_free: {steps: 3}", "hessian_free: {steps: 3, preset: simplenn}", "preset: unknown key"),
        ("baselines: [Adam]", "baselines: []", "baselines is empty"),
        ("baselines: [Adam]", "measure: test_accuracy", "the test set is not for tuning"),
        ("baselines: [Adam]", "tune_by: validation_loss", "need each other"),
        ("lbfgs: {steps: 12}", "lbfgs: {steps: 12, batches: {curvature: 5}}", "has no use in L-BFGS"),
    ],
)
def test_a_wrong_file_gets_one_message(files, old, new, message):
    assert old in COMPARISON
    (files / "tiny.yaml").write_text(COMPARISON.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        taking_part(load_comparison(files / "tiny.yaml"), load_baselines(files / "baselines.yaml"))


def test_the_committed_files_of_baselines_and_comparisons_fit_each_other():
    """Every comparison can be tuned; a tuning that is stored is for the settings that its comparison has."""
    baselines, folder = load_baselines(ROOT / "configs/baselines.yaml"), ROOT / "configs/compare"
    for path in sorted(folder.glob("*.yaml")):
        comparison = load_comparison(path)
        assert comparison.name == path.stem
        part = taking_part(comparison, baselines)
        rows = [row_of(comparison, baseline, baseline.candidates()[0]) for baseline in part]
        if tuned_file(comparison, ROOT / "configs/tuned").exists():
            rows += load_tuned(comparison, part, ROOT / "configs/tuned")
        for row in (ours(comparison), *rows):
            config_of(comparison, row, seed=0)
