"""What is said of the runs of a comparison: values at equal time, costs of targets, verdicts, performance profiles."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from experiments.settings.file import check_settings
from experiments.suite.figures import _greatest_drawn, _least_drawn, _style, band
from experiments.suite.file import OURS, Comparison, load_baselines
from experiments.suite.measures import Curve, Entry, Outcome, less_is_better, measure_text, profile
from experiments.suite.rows import Row
from experiments.suite.verdicts import TIE, beside, verdict
from tests.experiments.conftest import ROOT

COMPARISON = check_settings(
    TypeAdapter(Comparison),
    {
        "name": "one",
        "title": "One",
        "about": "",
        "reference": "",
        "problem": {
            "family": "classification",
            "data": {"name": "digits"},
            "model": {"kind": "mlp", "hidden": [4]},
        },
        "budgets": {"hessian_free": {"steps": 4}, "first_order": {"steps": 4}},
    },
    "the test",
)


def curve(*values, seconds=1.0):
    """A value before the first step and one after each; a step takes so many seconds, one example and two gradients."""
    steps = np.arange(len(values), dtype=float)
    return Curve({"examples": steps, "gradient_equivalents": 2 * steps, "seconds": seconds * steps}, np.array(values))


def entry(label, *curves):
    return Entry(Row(label, OURS if label.startswith(OURS) else "adam", {}, {}), [], list(curves))


def outcome(ours, **baselines):
    entries = [entry(OURS, *ours), *(entry(label, *curves) for label, curves in baselines.items())]
    return Outcome(COMPARISON, entries)


def test_a_curve_knows_its_value_at_a_time_and_what_a_target_took():
    one = curve(4.0, 2.0, 3.0, 1.0, seconds=0.5)
    assert (one.final, one.seconds) == (1.0, 1.5)
    assert [one.at(t) for t in (0.0, 0.49, 0.5, 1.2, 9.0)] == [4.0, 4.0, 2.0, 3.0, 1.0]
    assert [one.cost_of(target, "gradient_equivalents") for target in (4.0, 2.0, 1.0)] == [0.0, 2.0, 6.0]
    assert one.cost_of(0.5, "seconds") == math.inf


def test_between_two_evaluations_the_logarithm_falls_linearly():
    assert curve(8.0, 1.0, seconds=3.0).cost_of(2.0, "seconds") == pytest.approx(2.0)  # 8 → 4 → 2 → 1 in a second each
    assert curve(8.0, 8.0, 0.0).cost_of(2.0, "seconds") == 1.75  # of zero there is none: as a straight line
    assert curve(8.0, math.inf, 1.0).cost_of(2.0, "seconds") == 2.0


def test_half_of_the_seeds_beside_the_target_make_the_median_cost_infinite():
    there, not_there = curve(2.0, 1.0), curve(2.0, 2.0)
    assert entry("a", there, there, not_there).median_cost(1.0, "seconds") == 1.0
    assert entry("a", there, not_there).median_cost(1.0, "seconds") == math.inf


def test_accuracies_turn_into_errors_and_what_is_not_finite_is_the_worst():
    assert less_is_better(0.9, True) == pytest.approx(0.1)
    assert less_is_better(0.9, False) == 0.9
    assert less_is_better(math.nan, False) == less_is_better(math.nan, True) == math.inf


def test_what_only_rounding_tells_from_zero_is_shown_as_such():
    assert [measure_text(COMPARISON, value) for value in (-4.5e-19, 2e-15, 0.25)] == ["< 1e-15", "2e-15", "0.25"]


def test_the_target_is_what_the_best_baseline_reached_from_every_seed_unless_it_is_given():
    found = outcome([curve(9.0, 0.1)], A=[curve(9.0, 1.0), curve(9.0, 3.0), curve(9.0, 2.0)], B=[curve(9.0, 5.0)])
    assert found.best_baseline.row.label == "A"
    assert found.target == 3.0
    assert found._replace(comparison=replace(COMPARISON, target=0.5)).target == 0.5
    assert found._replace(comparison=replace(COMPARISON, target=0.75, higher_is_better=True)).target == 0.25


class TestVerdict:
    def test_less_in_the_same_time_wins(self):
        found = verdict(outcome([curve(9.0, 1.0, 0.5)], A=[curve(9.0, 5.0, 2.0)], B=[curve(9.0, 3.0, 3.0)]))
        assert found.winner == OURS
        assert "0.5 against 2 of A at equal time, ahead of every baseline" in found.text

    def test_less_after_more_time_does_not(self):
        found = verdict(outcome([curve(9.0, 4.0, 0.5, seconds=2.0)], A=[curve(9.0, 5.0, 2.0)]))
        assert found.winner == "A"
        assert "A wins here: train loss 2 against 4 at equal time" in found.text
        assert "hessian_free ends better, at 0.5, after 2.0 times the seconds" in found.text

    def test_more_loses_and_the_same_ties(self):
        assert verdict(outcome([curve(9.0, 3.0)], A=[curve(9.0, 2.0)])).winner == "A"
        assert verdict(outcome([curve(9.0, 2.02)], A=[curve(9.0, 2.0)])).winner == TIE

    def test_a_baseline_is_never_cut_off(self):
        """It takes ten times as long and is better at its end alone: that counts."""
        found = verdict(outcome([curve(9.0, 1.0)], A=[curve(9.0, 5.0, 0.5, seconds=5.0)]))
        assert found.winner == "A"

    def test_a_diverged_baseline_is_beaten(self):
        assert verdict(outcome([curve(9.0, 1.0)], A=[curve(9.0, math.inf)])).winner == OURS

    def test_with_a_given_target_the_sooner_wins_whatever_the_ends_are(self):
        ours, rival = [curve(9.0, 1.0, 0.9, seconds=2.0)], [curve(9.0, 8.0, 8.0, 8.0, 1.0, 0.1)]
        found = outcome(ours, A=rival, B=[curve(9.0, 2.0, seconds=3.0)])
        assert verdict(found).winner == "A"
        given = verdict(found._replace(comparison=replace(COMPARISON, target=1.0)))
        assert given.winner == OURS
        assert "it reaches train loss 1 in 2.0 s; A 4.0 s (2 times), B not in its 3.0 s" in given.text
        assert "Examples seen: hessian_free 1, A 4. Gradient-equivalents: hessian_free 2, A 8." in given.text
        out_of_reach = found._replace(comparison=replace(COMPARISON, target=0.01))
        assert verdict(out_of_reach) == verdict(found)

    def test_ranges_that_overlap_at_equal_time_are_pointed_out(self):
        ours = [curve(9.0, value, 0.5) for value in (1.0, 1.1, 3.0)]
        assert "ranges over the seeds overlap" in verdict(outcome(ours, A=[curve(9.0, 2.0)] * 3)).text
        assert "overlap" not in verdict(outcome(ours[:2], A=[curve(9.0, 2.0)] * 3)).text

    def test_accuracies_whose_ranges_overlap_tie(self):
        found = outcome([curve(0.9, value) for value in (0.01, 0.02, 0.03)], A=[curve(0.9, 0.025)] * 3)
        assert verdict(found).winner == OURS
        assert verdict(found._replace(comparison=replace(COMPARISON, higher_is_better=True))).winner == TIE

    def test_what_only_rounding_tells_from_zero_ties(self):
        assert verdict(outcome([curve(9.0, -3e-19)], A=[curve(9.0, 1e-17)])).winner == TIE

    def test_a_target_is_not_won_while_the_others_had_less_time_nor_by_a_hair(self):
        ours, soon, late = [curve(9.0, 8.0, 1.0)], [curve(9.0, 2.0)], [curve(9.0, 8.0, 1.0, seconds=1.05)]
        given = replace(COMPARISON, target=1.0)
        short = outcome(ours, A=soon)._replace(comparison=given)
        assert verdict(short).winner != OURS
        assert verdict(outcome(ours, A=late)._replace(comparison=given)).winner == TIE

    def test_a_target_that_is_met_at_the_start_divides_by_nothing(self):
        found = outcome([curve(1.0, 0.5)], A=[curve(1.0, 0.9)])._replace(comparison=replace(COMPARISON, target=2.0))
        assert verdict(found).text
        assert all((ratios == 1).all() for ratios, _ in profile([found], "seconds").values())


def test_without_a_finite_result_of_the_baselines_there_is_no_target():
    found = outcome([curve(9.0, 1.0)], A=[curve(9.0, math.inf), curve(9.0, math.inf)])
    assert found.target == math.inf
    assert found.ours.median_cost(found.target, "seconds") == math.inf
    assert all(len(ratios) == 0 for ratios, _ in profile([found], "seconds").values())
    assert outcome([curve(9.0)], A=[curve(9.0, 1.0), curve(9.0, 2.0), curve(9.0, math.inf)]).target == 2.0


def test_a_performance_profile_counts_problems_within_a_multiple_of_the_least_cost():
    """Costs of the target: ours 1, 4, never; A 2, 1, never; B (in one problem alone) 8."""
    cost = lambda steps: [curve(*[9.0] * (steps - 1), math.inf, 1.0)] if steps else [curve(9.0, 9.0)]  # noqa: E731
    problems = [
        outcome(cost(1), A=cost(2), B=cost(8)),
        outcome(cost(4), A=cost(1)),
        outcome(cost(0), A=cost(0)),
    ]
    comparison = replace(COMPARISON, target=1.0)
    found = profile([one._replace(comparison=comparison) for one in problems], "examples")
    expected = {OURS: ([1, 4], [1 / 3, 2 / 3]), "A": ([1, 2], [1 / 3, 2 / 3]), "B": ([8], [1])}
    assert found.keys() == expected.keys()
    for label, (ratios, shares) in expected.items():
        np.testing.assert_allclose(found[label][0], ratios)
        np.testing.assert_allclose(found[label][1], shares)


def test_a_band_has_medians_and_ranges_and_leaves_out_what_no_logarithm_shows():
    runs = [curve(9.0, 3.0, 1.0), curve(9.0, 5.0, math.inf), curve(9.0, 4.0)]
    x, middle, low, high = band(entry("a", *runs), "seconds")
    np.testing.assert_array_equal(x, [1.0, 2.0])
    np.testing.assert_array_equal(middle, [4.0, 4.0])
    np.testing.assert_array_equal(low, [3.0, 1.0])
    np.testing.assert_array_equal(high, [5.0, np.nan])
    _, solved, _, _ = band(entry("a", curve(9.0, 0.0, 0.0)), "seconds", least=0.5)
    np.testing.assert_array_equal(solved, [0.5, 0.5])


def test_a_second_row_of_hessian_free_has_no_say():
    """Neither as the winner, nor as the least cost of a profile, nor as what sets the target."""
    ours, theirs, second = [curve(9.0, 9.0, 9.0, 2.0)], [curve(9.0, 9.0, 3.0, 3.0)], [curve(9.0, 0.5, 0.5, 0.5)]
    for target in (None, 5.0):
        comparison = replace(COMPARISON, target=target)
        alone = outcome(ours, A=theirs)._replace(comparison=comparison)
        both = outcome(ours, A=theirs, **{"hessian_free (tuned)": second})._replace(comparison=comparison)
        assert verdict(both) == verdict(alone)
        assert both.target == alone.target
        profiles = [profile([one], "seconds") for one in (both, alone)]
        np.testing.assert_equal(*profiles)
        assert beside(alone) == []


def test_a_second_row_of_hessian_free_is_told_of_beside_the_verdict():
    second = [curve(9.0, 3.0, 1.0), curve(9.0, 4.0, 4.0), curve(9.0, 1.0, 1.0)]
    found = outcome([curve(9.0, 9.0, 1.0)] * 3, A=[curve(9.0, 9.0)], **{"hessian_free (tuned)": second})
    (text,) = beside(found._replace(comparison=replace(COMPARISON, target=3.0)))
    assert text == (
        "hessian_free (tuned) ends at 1 in 2.0 s, and reaches train loss 3 from 2 of 3 seeds, in the median after 1 "
        "examples and 1.0 s; from its defaults 3 of 3 do."
    )


def test_a_share_that_is_zero_is_drawn_below_the_target():
    one = outcome([curve(0.9, 0.03125, 0.0)], A=[curve(0.9, 0.9)])
    solved = replace(COMPARISON, higher_is_better=True, target=0.99)
    assert _least_drawn(one._replace(comparison=solved)) == pytest.approx(0.005)
    assert _least_drawn(one) == 0.03125


def test_a_run_on_its_way_to_infinity_leaves_room_for_the_others():
    one = outcome([curve(2.0, 0.1)], A=[curve(3.0, 1e200, math.inf)])
    assert _greatest_drawn(one) == 300
    np.testing.assert_array_equal(band(one.entries[1], "seconds", 0.0, 300.0)[1], [300.0, np.nan])


def test_every_row_of_a_figure_has_a_style_of_its_own():
    labels = [baseline.label for baseline in load_baselines(ROOT / "configs/baselines.yaml")]
    styles = [_style(label, labels) for label in (OURS, *labels)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == len(styles)


def test_a_baseline_that_was_stopped_sooner_has_not_lost_the_race_to_the_target():
    ours, slow = [curve(9.0, 9.0, 9.0, 0.5)], [curve(9.0, 9.0, seconds=4.0)]
    given = lambda **others: verdict(outcome(ours, **others)._replace(comparison=replace(COMPARISON, target=1.0)))  # noqa: E731
    assert "reaches" in given(Slow=slow).text
    assert "reaches" not in given(Slow=slow, Stopped=[curve(9.0, 9.0)]).text
    assert "reaches" in given(Slow=slow, Diverged=[curve(9.0, math.inf)]).text
