"""What a person sees of a run is what is recorded of it."""

import io

from rich.console import Console

from experiments.problems.classification import accuracy
from experiments.runs.display import describe, display

ACCURACY = accuracy(lambda params, inputs: inputs)
ROW = {
    "step": 3,
    "epoch": 3.0,
    "loss": 0.5,
    "train_loss": 0.25,
    "test_accuracy": 0.975,
    "reduction_ratio": 0.9,
    "damping": 0.01,
    "cg_steps": 12,
    "step_size": 0.5,
    "seconds": 1.25,
    "accepted": False,
}


class TestDisplay:
    def test_a_row_is_described_with_everything_it_has(self):
        text = describe(ROW, ACCURACY)
        for part in ("epoch 3", "loss 0.5", "train 0.25", "test 97.50%", "ρ 0.90", "λ 0.01", "CG 12", "α 0.5", "1.2 s"):
            assert part in text
        assert text.endswith("rejected")
        assert describe({"step": 1, "loss": 2.0}, ACCURACY) == "loss 2"

    def test_a_terminal_gets_one_live_line_with_progress_and_time_left(self):
        output = io.StringIO()
        console = Console(file=output, force_terminal=True, width=160)
        with display(console, "title", steps=10, metric=ACCURACY) as shown:
            shown.show(ROW)
        for part in ("title", "30%", "test 97.50%", "left"):
            assert part in output.getvalue()

    def test_elsewhere_the_first_and_last_rows_are_lines_of_their_own(self):
        output = io.StringIO()
        with display(Console(file=output, width=80), "title", steps=1000, metric=ACCURACY) as shown:
            for step in range(1001):
                shown.show({"step": step, "loss": 1 / (step + 1)})
        printed = output.getvalue().splitlines()
        assert printed[0].startswith("title  step 0/1000")
        assert printed[-1].startswith("title  step 1000/1000")
        assert len(printed) < 20
