"""Queued steps are the same steps, in one program."""

from dataclasses import replace
from itertools import islice

import pytest

from experiments.runs import runner
from experiments.runs.recording import read_metrics, read_summary
from experiments.settings.config_file import load_config
from experiments.training.loop import train
from tests.experiments.conftest import recorded_run, rows

TIMES = {"seconds", "compile_seconds", "evaluation_seconds"}


def comparable(rows: list[dict]) -> list[dict]:
    """Without times, and with numbers that are not finite as text, which is equal to itself."""
    return [{name: repr(value) for name, value in row.items() if name not in TIMES} for row in rows]


def one_by_one(plan):
    return replace(plan, optimizer=replace(plan.optimizer, queued_steps=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizers.adam.steps=130", "optimizers.adam.epochs=null", "recording.evaluate_every_epochs=30"),
        ("optimizers.adam.epochs=4",),  # an evaluation every three or four steps
        ("optimizers.adam.steps=60", "optimizers.adam.epochs=null", "recording.evaluations=5"),
        ("optimizers.adam.epochs=4", "optimizers.adam.batches.gradient_growth={factor: 2, every_steps: 3}"),
        ("optimizer=sgd", "optimizers.sgd.steps=7", "recording.evaluate_every_epochs=5"),  # on the full batch
    ],
)
def test_a_run_has_the_same_rows_whether_its_steps_are_queued_or_not(plan, overrides):
    queued = plan(*overrides, "problem.model.hidden=[]")
    assert queued.optimizer.queued_steps > 10
    assert comparable(rows(queued)) == comparable(rows(one_by_one(queued)))


@pytest.mark.slow
def test_queued_convolutions_are_the_same_up_to_rounding(plan):
    queued = plan("problem.model={kind: cnn, channels: [4], kernels: [3]}", "optimizers.adam.epochs=3")
    for one, other in zip(rows(queued), rows(one_by_one(queued)), strict=True):
        assert one["step"] == other["step"]
        assert one.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-4)
        assert one.get("test_loss", 0.0) == pytest.approx(other.get("test_loss", 0.0), rel=1e-4)


def test_a_queue_ends_at_evaluations_at_new_sizes_at_the_end_and_when_it_is_full(plan):
    def lengths(*overrides: str) -> list[int]:
        built, found, step = plan("problem.model.hidden=[]", *overrides), [], 0
        while step < built.steps:
            found.append(built.queue(step))
            step += found[-1]
        assert step == built.steps
        return found

    long = ("optimizers.adam.steps=130", "optimizers.adam.epochs=null", "recording.evaluate_every_epochs=1000")
    assert lengths(*long) == [50, 50, 30]
    assert lengths("optimizers.adam.epochs=2") == [4, 3]  # epochs of 200 end within the 4th and 7th batch of 64
    growing = "optimizers.adam.batches.gradient_growth={factor: 2, every_steps: 20}"
    assert lengths(*long, growing) == [20, 20, 50, 40]  # 64, 128, and from then on all 200
    searches = ("optimizer=lbfgs", "optimizers.lbfgs={steps: 25}", "recording.evaluate_every_epochs=1000")
    assert lengths(*searches) == [10, 10, 5]
    assert lengths("optimizer=hessian_free") == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "settings",
    [
        "optimizers.adam={steps: 40, learning_rate: 1e38, batches: {gradient: 64}}",
        "optimizers.sgd={steps: 40, learning_rate: 1e5}",  # whose parameters are finite when the loss no longer is
    ],
)
def test_divergence_in_the_middle_of_a_queue_ends_the_run_at_the_same_step(plan, settings):
    queued = plan(
        settings,
        f"optimizer={settings[11:].partition('=')[0]}",
        "problem.model.hidden=[]",
        "problem.loss=squared_error",
        "recording.evaluate_every_epochs=1000",
    )
    recorded = rows(queued)
    assert 1 < len(recorded) < 41
    assert comparable(recorded) == comparable(rows(one_by_one(queued)))
    assert recorded_run(queued)[-1][1].steps == recorded[-1]["step"]


INTERRUPTED = {
    "adam": (
        "optimizers.adam={steps: 30, learning_rate: 1e-2, batches: {gradient: 64}}",
        "recording.evaluate_every_epochs=3",
    ),
    "lbfgs": ("optimizers.lbfgs={steps: 9}",),
}


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 9), ("adam", 14), ("lbfgs", 6)])
def test_interrupted_and_resumed_it_ends_with_the_rows_of_an_undisturbed_run(
    small_file, tmp_path, console, monkeypatch, optimizer, moments
):
    """Of Adam, queues are of ten and nine steps: the interruptions come in the middle of the first and the second."""
    overrides = [*INTERRUPTED[optimizer], f"optimizer={optimizer}", "recording.checkpoint_every_seconds=0"]
    config = load_config(small_file, [*overrides, "problem.model.hidden=[]"])
    undisturbed = runner.run(config, runs=tmp_path / "undisturbed", console=console)

    def interrupted(*arguments):
        yield from islice(train(*arguments), moments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config, runs=tmp_path / "runs", console=console)
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert read_summary(folder) is None
    assert len(read_metrics(folder)) == moments

    resumed = runner.run(config, runs=tmp_path / "runs", console=console, resume=True)
    assert resumed.folder == folder
    assert comparable(read_metrics(folder)) == comparable(read_metrics(undisturbed.folder))
    assert comparable([resumed.summary]) == comparable([undisturbed.summary])


def test_evaluations_at_so_many_steps_are_spaced_geometrically(plan):
    evaluated = [
        step
        for step in range(101)
        if plan("optimizer=sgd", "optimizers.sgd.steps=100", "recording.evaluations=5").is_evaluated(step)
    ]
    assert evaluated == [0, 1, 3, 10, 32, 100]  # and at the start: 1, 100^¼, 100^½, 100^¾, 100


def test_evaluations_that_round_to_the_same_step_are_one(plan):
    few = plan("optimizer=sgd", "optimizers.sgd.steps=4", "recording.evaluations=50")
    assert [step for step in range(5) if few.is_evaluated(step)] == [0, 1, 2, 3, 4]
