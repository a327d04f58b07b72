"""Aims of comparisons: what counts as met, on curves whose numbers are known."""

import math
from dataclasses import replace

import pytest

from experiments.runs.document import Page
from experiments.settings.errors import ConfigError
from experiments.suite.aims import judged
from experiments.suite.execution import Suite
from experiments.suite.file import Aims, load_baselines, taking_part
from experiments.suite.page import _aims
from tests.experiments.conftest import ROOT
from tests.experiments.suite.test_measures import COMPARISON, curve, outcome

FALLING = [curve(9.0, 4.0, 1.0)]  # 1 after two steps, of a second and an example each


def found(aims, ours=FALLING, target=None, higher=False, **baselines):
    comparison = replace(COMPARISON, aims=Aims(**aims), target=target, higher_is_better=higher)
    return judged(outcome(ours, **baselines)._replace(comparison=comparison))


def met(aims, **options):
    (one,) = found(aims, **options)
    return one.met


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (curve(9.0, 8.0, 4.0), True),
        (curve(9.0, 8.0, 2.0), False),
        (curve(9.0, 2.0, 4.0), False),  # it was there, and left again
        (curve(9.0, 4.0), False),  # it had one second, where hessian_free took two
    ],
)
def test_a_value_is_reached_and_a_baseline_stays_behind_in_the_same_time(baseline, expected):
    verdicts = found({"reach": 1.0, "behind": {"A": 3.0}}, A=[baseline])
    assert [one.met for one in verdicts] == [True, expected]
    ended_early = baseline.costs["seconds"][-1] < 2
    assert verdicts[1].found.endswith("too soon to tell") == ended_early


def test_a_value_that_is_not_held_to_the_end_is_not_reached():
    left = found({"reach": 1.0, "behind": {"A": 3.0}}, ours=[curve(9.0, 1.0, 2.0)], A=[curve(9.0, 9.0, 9.0)])
    assert [one.met for one in left] == [False, False]
    assert left[0].found == "2"


def test_ahead_of_all_means_of_each_at_its_own_end_and_by_more_than_a_tie():
    aims = {"ahead_of_all": True}
    assert met(aims, A=[curve(9.0, 5.0)], B=[curve(9.0, 2.0, 2.0)])
    assert not met(aims, A=[curve(9.0, 5.0)], B=[curve(9.0, 3.0)])  # hessian_free has 4 by then
    assert not met(aims, A=[curve(9.0, 9.0, 1.01)])


def test_as_good_as_any_compares_the_ends_of_whole_runs():
    aims = {"as_good_as_any": True}
    assert met(aims, A=[curve(9.0, 1.0)])
    assert not met(aims, A=[curve(9.0, 0.9, 0.9, 0.9)])
    accuracies = found(aims, ours=[curve(0.9, 0.02)], higher=True, A=[curve(0.9, 0.03)])
    assert accuracies == [(accuracies[0].aim, True, "98.00% in 1.0 s against 97.00% of A in 1.0 s")]
    assert not met(aims, ours=[curve(9.0, math.inf)], A=[curve(9.0, math.inf)])


@pytest.mark.parametrize(
    ("late", "expected", "numbers"),
    [
        (curve(*[9.0] * 19, math.inf, 1.0), True, "2.0 s; A 20 s"),
        (curve(*[9.0] * 18, math.inf, 1.0), False, "2.0 s; A 19 s"),
        (curve(*[9.0] * 21), True, "2.0 s; A at least 20 s"),  # it never got there
        (curve(*[9.0] * 20), False, "2.0 s; A at least 19 s"),
        (curve(9.0, math.inf), True, "2.0 s; B 101 s"),  # it diverged
    ],
)
def test_times_sooner_takes_what_a_baseline_had_where_it_never_got_there(late, expected, numbers):
    slow = [curve(*[9.0] * 100, math.inf, 1.0)]
    (one,) = found({"times_sooner": 10.0}, target=1.0, A=[late], B=slow)
    assert (one.met, one.found) == (expected, numbers)


def test_where_every_rival_diverged_nothing_is_sooner():
    (one,) = found({"times_sooner": 2.0}, target=1.0, A=[curve(9.0, math.inf)])
    assert (one.met, one.found) == (False, "none of them is left to compare with")


def test_a_target_that_is_never_reached_is_not_reached_sooner():
    assert not met({"times_sooner": 2.0}, target=0.1, A=[curve(9.0, 9.0)])


def test_solved_from_seeds_and_from_fewer_examples():
    aims = {"seeds": 1, "examples_of": {"A": 0.2}}
    never = lambda steps: [curve(*[9.0] * (steps + 1))]  # noqa: E731
    assert [one.met for one in found(aims, target=1.0, A=never(10))] == [True, True]
    assert [one.met for one in found(aims, target=1.0, A=never(9))] == [True, False]
    assert [one.met for one in found(aims, target=0.5, A=never(10))] == [False, False]
    assert found(aims, target=1.0, A=never(10))[1].found == "2; A not within 10"


@pytest.mark.parametrize(("quick", "lines"), [(False, 1), (True, 0)])
def test_the_page_has_a_table_of_aims_but_not_that_of_the_quick_edition(tmp_path, quick, lines):
    comparison = replace(COMPARISON, aims=Aims(reach=0.5))
    page = Page("Results", "")
    _aims(page, Suite([outcome(FALLING, A=FALLING)._replace(comparison=comparison)], {}, quick))
    text = page.write_markdown(tmp_path / "index.md", "").read_text()
    assert text.count("| One | train loss 0.5 or better | missed | 1 |") == lines
    assert ("of which 0 of 1 were met" in text) is not quick


@pytest.mark.parametrize(
    ("aims", "target", "message"),
    [
        ({"seeds": 3}, None, "need a target"),
        ({"seeds": 4}, 1.0, "aims.seeds is 4, but there are 3 seeds"),
        ({"behind": {"A": 1.0}}, None, "behind needs aims.reach"),
    ],
)
def test_an_aim_needs_what_it_is_judged_by(aims, target, message):
    with pytest.raises(ValueError, match=message):
        replace(COMPARISON, aims=Aims(**aims), target=target)


def test_aims_name_baselines_that_take_part():
    comparison = replace(COMPARISON, aims=Aims(reach=1.0, behind={"SGD": 1.0}), baselines=("Adam",))
    with pytest.raises(ConfigError, match="aims name 'SGD', but only Adam take part"):
        taking_part(comparison, load_baselines(ROOT / "configs/baselines.yaml"))
