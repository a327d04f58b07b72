"""The doctor names the fault of each broken problem, and lets healthy ones of every family pass."""

import re

import jax
import pytest

import hfopt
from hfopt.analysis.report import Status
from tests.analysis.problems import BROKEN, HEALTHY
from tests.cases import slowly

pytestmark = pytest.mark.float32
# What may be said of a healthy problem beside: it is true, and may be meant.
ALLOWED = {"BatchNorm": {"chunks"}, "a masked classifier": {"parameters"}}
FAST = {"a graph", "bfloat16", "an absolute error", "statistics among the parameters", "NaN among the data"}


def _each(problems):
    return [name if name in FAST else slowly(name) for name in problems]


@pytest.mark.parametrize("name", _each(BROKEN))
def test_a_broken_problem_has_its_fault_named(name):
    make, check, words = BROKEN[name]
    report = hfopt.check(*make())
    assert not report.ok, str(report)
    finding = report[check]
    assert finding.status is Status.FAILED, str(report)
    assert re.search(words, f"{finding.detail} {finding.advice}"), str(finding)


@pytest.mark.parametrize("name", _each(HEALTHY))
def test_a_healthy_problem_passes(name):
    with jax.enable_x64(name == "float64"):
        report = hfopt.check(*HEALTHY[name]())
    assert report.ok, str(report)
    assert {finding.name for finding in report if finding.status is Status.WARNING} <= ALLOWED.get(name, set())


def test_there_are_as_many_problems_as_are_promised():
    assert (len(BROKEN), len(HEALTHY)) == (12, 8)
