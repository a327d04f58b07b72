"""The page of a suite: verdicts, performance profiles, and for each comparison a table and a figure."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.runs.document import Page
from experiments.runs.environment import described_environment
from experiments.runs.readable import metric_of, metric_title
from experiments.settings.optimizers import Training
from experiments.suite.aims import judged
from experiments.suite.execution import Suite
from experiments.suite.figures import draw_comparison, draw_profiles
from experiments.suite.file import OURS, Comparison, Value, load_baselines
from experiments.suite.measures import Entry, Outcome, measure_text, measure_title, seconds_text
from experiments.suite.rows import Row, title_of
from experiments.suite.verdicts import TIE, Verdict, beside, verdict

# Who runs, what is counted, and who wins.
_METHOD = (
    """
    hessian_free runs at its defaults on every problem; only its batches and its budget are chosen for each, as they are
    for the others; where there is a second row of it with tuned settings, that row has no say in verdicts and profiles.
    Every baseline is tuned on every problem (configs/tuned): a grid of the learning rate and one or two more settings,
    of L-BFGS its memory, by successive halving with the same budget for each trial, and with seeds that are not those
    of the comparison; where a target is given, by how soon it is reached on the training set. As long as the best
    learning rate of the first round is at an edge of the grid, the grid grows, at most four times. Learning rates of
    first-order methods fall to zero along a cosine, unless a constant one was chosen.
    """,
    """
    An example is one that a step takes its gradient on. A gradient-equivalent is one gradient of the whole training
    set, or one curvature-vector product on it, line searches of L-BFGS included; evaluations of the loss alone are not
    counted, but their seconds are. Seconds are those of the steps, in a process with one CPU core to itself unless
    there is an accelerator; evaluations of whole sets are apart, and so is compiling, which is that of the first seed,
    and little where a tuning had compiled the same program. Steps of first-order methods run fifty at a time in one
    compiled program, those of L-BFGS ten, all others one by one.
    """,
    """
    Where a target is given, the verdict goes to who reaches it first. Else it compares medians over the seeds at equal
    time: each baseline at the end of its schedule, hessian_free at that time or at its own end, whichever is earlier.
    Values within 2 % tie, and so do accuracies whose ranges overlap, and times to a target within 10 %. Where no target
    is given, it is what the best baseline reached from every seed; baselines reach that at the end of their schedules,
    which a performance profile should be read with, and with that it counts whoever gets there, also where a rival that
    does not was given less time. What a target took is interpolated between two evaluations.
    """,
)


def write_page(suite: Suite, out: Path, command: str, console: Console) -> tuple[Path, Path]:
    """Writes `index.md` with its figures and the self-contained `index.html` into a folder; returns both paths.

    Args:
      suite: the outcomes.
      out: the folder.
      command: what made them, for the page.

    Raises:
      ExperimentError: Matplotlib is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    labels = [baseline.label for baseline in load_baselines()]
    verdicts = [verdict(outcome) for outcome in suite.outcomes]
    title = "Results, quick edition" if suite.quick else "Results"
    page = Page(title, f"hessian_free at its defaults beside tuned baselines. Made by `{command}`.")
    if suite.quick:
        page.paragraph("One seed and a small share of every budget: this shows that everything runs, and little else.")
    _summary(page, suite, verdicts)
    _aims(page, suite)
    if suite.outcomes:
        page.figure(
            draw_profiles(suite.outcomes, labels, out / "profiles.png"),
            "Share of problems whose target is reached within τ times the least cost of any optimizer "
            "(performance profiles of Dolan and Moré), of the problems that it took part in; higher is better.",
        )
    for paragraph in _METHOD:
        page.paragraph(" ".join(paragraph.split()))
    for outcome, found in zip(suite.outcomes, verdicts, strict=True):
        _section(page, outcome, found, labels, out)
    for name, reason in suite.missing.items():
        page.heading(name)
        page.paragraph(f"Not run: {reason}", kind="verdict")
    footer = _footer(suite)
    paths = page.write_markdown(out / "index.md", footer), page.write(out / "index.html", footer)
    for outcome, found in zip(suite.outcomes, verdicts, strict=True):
        console.print(f"[bold]{outcome.comparison.title}[/]: {found.text}", highlight=False, soft_wrap=True)
    console.print(f"page: {paths[0]} and {paths[1]}", highlight=False, soft_wrap=True)
    return paths


def _summary(page: Page, suite: Suite, verdicts: Sequence[Verdict]) -> None:
    wins = Counter(found.winner for found in verdicts)
    others = wins.total() - wins[OURS] - wins[TIE]
    count = f"Of {wins.total()} problems, "
    counted = f"{count}hessian_free wins {wins[OURS]}, ties {wins[TIE]} and loses {others}."
    page.paragraph(counted + (f" {len(suite.missing)} were not run; see below." if suite.missing else ""))
    columns = ("problem", "measure", "hessian_free", "best baseline", "which is", "time ratio", "winner")
    rows = [
        (outcome.comparison.title, *(_times(outcome) if found.sooner else _ends(outcome)), found.winner)
        for outcome, found in zip(suite.outcomes, verdicts, strict=True)
    ]
    page.table(columns, rows)
    page.paragraph(
        "Values are those at the end of whole runs, whose times the time ratio compares, hessian_free to the best "
        "baseline; where times to a target decided, they are these times. The winner is found at equal time."
    )


def _ends(outcome: Outcome) -> tuple[str, ...]:
    """What a row of the summary says where values decided."""
    comparison, ours, best = outcome.comparison, outcome.ours, outcome.best_baseline
    values = (measure_text(comparison, entry.median) for entry in (ours, best))
    return measure_title(comparison), *values, best.row.label, f"{ours.seconds / best.seconds:.2g}"


def _times(outcome: Outcome) -> tuple[str, ...]:
    """What it says where times to the target did."""
    cost = lambda entry: entry.median_cost(outcome.target, "seconds")  # noqa: E731
    ours, best = outcome.ours, min(outcome.baselines, key=cost)
    title = f"seconds to {measure_title(outcome.comparison)} {measure_text(outcome.comparison, outcome.target)}"
    text = lambda entry: seconds_text(cost(entry)) if math.isfinite(cost(entry)) else "never"  # noqa: E731
    ratio = f"{cost(ours) / cost(best):.2g}" if 0 < cost(best) < math.inf > cost(ours) else "–"
    return title, text(ours), text(best), best.row.label, ratio


def _aims(page: Page, suite: Suite) -> None:
    """What was hoped for, and whether it came about; the budgets of the quick edition are not for that."""
    if suite.quick:
        return
    rows = [
        (outcome.comparison.title, aim.aim, "met" if aim.met else "missed", aim.found)
        for outcome in suite.outcomes
        for aim in judged(outcome)
    ]
    if rows:
        met = sum(row[2] == "met" for row in rows)
        left_out = " Those of problems that were not run are not among them." if suite.missing else ""
        page.paragraph(f"What was aimed for (configs/compare), of which {met} of {len(rows)} were met.{left_out}")
        page.table(("problem", "aim of hessian_free at its defaults", "", "measured"), rows)


def _section(page: Page, outcome: Outcome, found: Verdict, labels: Sequence[str], out: Path) -> None:
    comparison = outcome.comparison
    page.heading(comparison.title)
    page.paragraph(comparison.about)
    page.paragraph(found.text, kind="verdict")
    for sentence in beside(outcome):
        page.paragraph(sentence)
    picture = draw_comparison(outcome, labels, out / f"{comparison.name}.png")
    page.figure(
        picture,
        f"{comparison.title}: {measure_title(comparison)}, median and range over {len(outcome.ours.results)} seeds, "
        "against examples, gradient-equivalents and seconds. The dotted line is the target.",
    )
    rows = [_cells(outcome, entry) for entry in outcome.entries]
    page.table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    chosen = {entry.row.label: _chosen(comparison, entry.row) for entry in outcome.entries if entry is not outcome.ours}
    tuned = "; ".join(f"{label}: {title_of(values)}" for label, values in chosen.items() if values)
    seeds = ", ".join(str(seed) for seed in (result.summary["seed"] for result in outcome.ours.results))
    batches = {entry.row.label: entry.row.settings["batches"] for entry in outcome.entries}
    sizes = "; ".join(f"{label}: {_batch(of)}" for label, of in batches.items())
    diverged = sum(result.diverged for entry in outcome.entries for result in entry.results)
    page.paragraph(
        f"Batches: {sizes}. {diverged} of {sum(len(entry.results) for entry in outcome.entries)} runs diverged. "
        f"Seeds {seeds}. {_target(outcome)} "
        f"{outcome.ours.results[0].summary['parameters']:,} parameters. Tuned settings: {tuned}."
    )
    there = {entry.row.label for entry in outcome.entries}
    if absent := [label for label in comparison.also if label not in there]:
        page.paragraph(f"Not installed, here or where it was tuned, and so not among the rows: {', '.join(absent)}.")
    page.paragraph(f"Reference: {comparison.reference}")


def _target(outcome: Outcome) -> str:
    comparison, target = outcome.comparison, outcome.target
    if math.isinf(target):
        return "No target: every baseline diverged."
    aim = f"{measure_title(comparison)} {measure_text(comparison, target)}"
    if comparison.target is not None:
        return f"Target: {aim}."
    return f"Target, of profiles and the last columns alone: {aim}, which {outcome.best_baseline.row.label} reached."


def _chosen(comparison: Comparison, row: Row) -> dict[str, Value]:
    """The tuned settings of a row, but those of which the comparison's grid has a single value.

    Of a second row of hessian_free: all that it does not leave to the defaults.
    """
    if row.optimizer == OURS:
        budget = {field.name for field in fields(Training)}
        return {name: value for name, value in row.settings.items() if name not in budget}
    grid = comparison.grids.get(row.label, {})
    return {name: value for name, value in row.tuned.items() if len(grid.get(name, ())) != 1}


def _batch(settings: Mapping[str, Any]) -> str:
    gradient, curvature = settings["gradient"], settings["curvature"]
    return str(gradient) if curvature == "same" else f"{gradient}, curvature {curvature}"


def _cells(outcome: Outcome, entry: Entry) -> dict[str, str]:
    """One row of the table, by the titles of its columns; what is there twice is shown once."""
    comparison, summaries = outcome.comparison, [result.summary for result in entry.results]
    of = lambda name: statistics.median_high([summary[name] for summary in summaries])  # noqa: E731
    text = lambda value: measure_text(comparison, value)  # noqa: E731
    finals = sorted(entry.finals)
    to_target = {axis: entry.median_cost(outcome.target, axis) for axis in ("examples", "seconds")}
    return {
        "optimizer": entry.row.label,
        "train loss": f"{of('train_loss'):.3g}",
        metric_title(summaries[0]): _median_metric(summaries),
        measure_title(comparison): text(entry.median),
        "best … worst": f"{text(finals[0])} … {text(finals[-1])}",
        "steps": f"{of('steps'):,}",
        "examples": f"{statistics.median(curve.costs['examples'][-1] for curve in entry.curves):,.0f}",
        "gradient-eq.": f"{of('gradient_equivalents'):,.0f}",
        "seconds": _range_of_seconds(entry),
        "compiling (s)": seconds_text(summaries[0]["compile_seconds"]),
        "to target (examples)": f"{to_target['examples']:,.0f}" if math.isfinite(to_target["examples"]) else "–",
        "to target (s)": seconds_text(to_target["seconds"]) if math.isfinite(to_target["seconds"]) else "–",
        "seeds there": f"{entry.arrivals(outcome.target)} of {len(entry.curves)}",
    }


def _range_of_seconds(entry: Entry) -> str:
    seconds = [curve.seconds for curve in entry.curves]
    return f"{seconds_text(entry.seconds)} ({seconds_text(min(seconds))} … {seconds_text(max(seconds))})"


def _median_metric(summaries: Sequence[Mapping[str, Any]]) -> str:
    """On the test set, over the seeds."""
    values = [value for _, value in map(metric_of, summaries) if value is not None]
    text: str = summaries[0]["metric_format"]
    return text.format(statistics.median(values))


def _footer(suite: Suite) -> str:
    environments = dict.fromkeys(
        described_environment(result.folder)
        for outcome in suite.outcomes
        for entry in outcome.entries
        for result in entry.results
    )
    mixed = " These runs were made in several environments." if len(environments) > 1 else ""
    return f"Written on {date.today().isoformat()}. {'; '.join(environments)}.{mixed}"
