"""What a configuration says of an optimizer is what the transformation is made of."""

from unittest.mock import call, create_autospec

import jax
import pytest

import hfopt
from experiments.config_file import load_config
from experiments.errors import ConfigError
from experiments.optimizers import build_optimizer


def test_settings_left_out_leave_hfopt_its_defaults(small_file):
    params = {"w": jax.numpy.ones(3)}
    configured = build_optimizer(load_config(small_file).optimizers.hessian_free, 1, 1).transformation
    default = hfopt.hessian_free()
    ours, theirs = configured.init(params), default.init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert ours.next_damping == theirs.next_damping


def test_every_choice_of_control_reaches_the_transformation(small_file):
    params = {"w": jax.numpy.ones(3)}

    def state(*overrides):
        overrides = [f"optimizers.hessian_free.{override}" for override in overrides]
        settings = load_config(small_file, overrides).optimizers.hessian_free
        return build_optimizer(settings, 1, 1).transformation.init(params)

    assert state("trust_region=none", "damping=constant").trust == ()
    assert state("trust_region=constant", "damping=constant", "trust_radius=0.3").trust.shape == ()
    assert state("trust_region=earned").trust.level == 1
    assert state("damping=levenberg_marquardt").next_damping == 1
    assert state("damping=constant", "initial_damping=0.2").next_damping == pytest.approx(0.2)


@pytest.mark.parametrize("line_search", ["full_step", "armijo", "fixed_step"])
def test_every_line_search_reaches_the_transformation(small_file, monkeypatch, line_search):
    given = {}
    monkeypatch.setattr(hfopt, "hessian_free", lambda **choices: given.update(choices))
    settings = load_config(small_file, [f"optimizers.hessian_free.line_search={line_search}"]).optimizers.hessian_free
    build_optimizer(settings, 1, 1)
    assert given["line_search"] == getattr(hfopt, line_search)()


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ("preset: simplenn", call()),
        ("preset: martens2010", call()),
        ("preset: martens2010, initial_damping: 2", call(damping=2.0)),
        ("preset: kiros2013", call(23)),
        ("preset: stochastic", call(400)),
        ("preset: stochastic, max_cg_steps: 2", call(400, cg_steps=2)),
        ("preset: stochastic, initial_damping: 2, trust_radius: 0.1", call(400, damping=2.0, radius=0.1)),
    ],
)
def test_a_preset_is_built_with_its_horizon_and_the_options_given(small_file, monkeypatch, settings, arguments):
    config = load_config(small_file, [f"optimizers.hessian_free={{steps: 1, {settings}}}"])
    preset = create_autospec(getattr(hfopt.presets, config.optimizers.hessian_free.preset))
    monkeypatch.setattr(hfopt.presets, config.optimizers.hessian_free.preset, preset)
    build_optimizer(config.optimizers.hessian_free, total_steps=400, steps_per_epoch=23)
    assert preset.call_args == arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{steps: 1, trust_region: none}", "damping: trust needs trust_region: earned"),
        ("{steps: 1, trust_region: none, damping: constant, trust_radius: 0.1}", "trust_radius has no use"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(small_file, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(small_file, [f"optimizers.hessian_free={settings}"])


def test_a_warm_start_of_zero_starts_from_zero(small_file):
    settings = load_config(small_file, ["optimizers.hessian_free.warm_start=0"]).optimizers.hessian_free
    assert build_optimizer(settings, 1, 1).transformation.init({"w": jax.numpy.ones(3)}).solution == ()
