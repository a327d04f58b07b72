"""Aims of comparisons: what counts as met, on curves whose numbers are known."""

import math
from dataclasses import replace

import pytest

from experiments.suite_aims import judged
from experiments.suite_file import Aims
from tests.experiments.test_suite_measures import COMPARISON, curve, outcome

FALLING = [curve(9.0, 4.0, 1.0)]  # 1 after two steps, of a second and an example each


def found(aims, target=None, higher=False, **baselines):
    comparison = replace(COMPARISON, aims=Aims(**aims), target=target, higher_is_better=higher)
    return judged(outcome(FALLING, **baselines)._replace(comparison=comparison))


def met(aims, **options):
    (one,) = found(aims, **options)
    return one.met


def test_a_value_is_reached_and_a_baseline_stays_behind_in_the_same_time():
    behind = {"reach": 1.0, "behind": {"A": 3.0}}
    verdicts = lambda *values, **more: [one.met for one in found(behind, A=[curve(*values, **more)])]  # noqa: E731
    assert verdicts(9.0, 8.0, 4.0) == [True, True]
    assert verdicts(9.0, 8.0, 2.0) == [True, False]
    assert verdicts(9.0, 4.0) == [True, False]  # it had one second, where hessian_free took two
    assert not met({"reach": 0.5}, A=FALLING)


def test_ahead_of_all_means_of_each_at_its_own_end():
    assert met({"ahead_of_all": True}, A=[curve(9.0, 5.0)], B=[curve(9.0, 2.0, 2.0)])
    assert not met({"ahead_of_all": True}, A=[curve(9.0, 5.0)], B=[curve(9.0, 3.0)])  # hessian_free has 4 by then
    assert met({"as_good_as_any": True}, A=[curve(9.0, 1.0)])
    assert not met({"as_good_as_any": True}, A=[curve(9.0, 0.9, 0.9, 0.9)])


@pytest.mark.parametrize(("steps", "expected"), [(20, True), (19, False)])
def test_times_sooner_takes_what_a_baseline_had_where_it_never_got_there(steps, expected):
    for last in (1.0, 9.0):
        late = [curve(*[9.0] * (steps - 1), math.inf, last)] if last == 1 else [curve(*[9.0] * (steps + 1))]
        assert met({"times_sooner": 10.0}, target=1.0, A=late) is expected


def test_solved_from_seeds_and_from_fewer_examples():
    aims = {"seeds": 1, "examples_of": {"A": 0.2}}
    never = lambda steps: [curve(*[9.0] * (steps + 1))]  # noqa: E731
    assert [one.met for one in found(aims, target=1.0, A=never(10))] == [True, True]
    assert [one.met for one in found(aims, target=1.0, A=never(9))] == [True, False]
    assert [one.met for one in found(aims, target=0.5, A=never(10))] == [False, False]
    assert found(aims, target=1.0, A=never(10))[1].found == "2; A not within 10"


@pytest.mark.parametrize(
    ("aims", "message"), [({"seeds": 3}, "need a target"), ({"behind": {"A": 1.0}}, "behind needs aims.reach")]
)
def test_an_aim_needs_what_it_is_judged_by(aims, message):
    with pytest.raises(ValueError, match=message):
        replace(COMPARISON, aims=Aims(**aims))
