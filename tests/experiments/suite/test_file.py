"""Which baselines take part in a comparison."""

from dataclasses import replace

import pytest

from experiments.settings.errors import ConfigError
from experiments.suite import file
from experiments.suite.file import Baseline, load_comparison, taking_part
from tests.experiments.conftest import ROOT

ADAM = Baseline(label="Adam", optimizer="adam", tune={"learning_rate": (0.1,)})
PEER = Baseline(label="peer", optimizer="somax", tune={"learning_rate": (0.1,)})


def with_peers(*peers):
    return replace(load_comparison(ROOT / "configs/compare/digits_mlp.yaml"), also=peers, grids={})


@pytest.mark.parametrize(
    ("peers", "installed", "labels"),
    [((), True, ["Adam"]), (("peer",), True, ["Adam", "peer"]), (("peer",), False, ["Adam"])],
)
def test_peers_take_part_where_they_are_named_and_installed(monkeypatch, peers, installed, labels):
    monkeypatch.setattr(file, "is_installed", lambda peer: installed)
    assert [baseline.label for baseline in taking_part(with_peers(*peers), [ADAM, PEER])] == labels


def test_rows_are_named_where_they_belong():
    with pytest.raises(ConfigError, match="name 'Adam' under baselines"):
        taking_part(with_peers("Adam"), [ADAM, PEER])
    with pytest.raises(ConfigError, match="name 'peer' under also"):
        taking_part(replace(with_peers(), baselines=("peer",)), [ADAM, PEER])
