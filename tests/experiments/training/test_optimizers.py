"""What a configuration says of an optimizer is what the transformation is made of."""

from unittest.mock import call, create_autospec

import jax
import numpy as np
import pytest

import hfopt
from experiments.settings.config_file import load_config
from experiments.settings.errors import ConfigError
from experiments.training.optimizers import build_optimizer


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
    assert state("preconditioner=none").preconditioner == ()
    assert state("damping=levenberg_marquardt").next_damping == 1
    assert state("damping=constant", "initial_damping=0.2").next_damping == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jacobi", {"preconditioner": hfopt.jacobi(decay=0.6, every=4)}),
        ("squared_gradients", {"preconditioner": hfopt.squared_gradients()}),
        ("none", {"preconditioner": None}),
        ("null", {}),
    ],
)
def test_every_preconditioner_reaches_the_transformation(small_file, monkeypatch, name, expected):
    given = {}
    monkeypatch.setattr(hfopt, "hessian_free", lambda **choices: given.update(choices))
    settings = load_config(small_file, [f"optimizers.hessian_free.preconditioner={name}"]).optimizers.hessian_free
    build_optimizer(settings, 1, 1)
    assert {key: value for key, value in given.items() if key == "preconditioner"} == expected


def test_metric_momentum_and_no_iterations_reach_the_transformation(small_file, monkeypatch):
    given = {}
    monkeypatch.setattr(hfopt, "hessian_free", lambda **choices: given.update(choices))
    wanted = ("metric=kronecker", "momentum=0.5", "max_cg_steps=0", "preconditioner=none")
    settings = load_config(small_file, [f"optimizers.hessian_free.{one}" for one in wanted]).optimizers.hessian_free
    assert build_optimizer(settings, 1, 1).queued_steps > 1
    assert given["metric"] == hfopt.kronecker()
    assert (given["momentum"], given["solver"].max_steps, given["preconditioner"]) == (0.5, 0, None)
    given.clear()
    assert build_optimizer(load_config(small_file).optimizers.hessian_free, 1, 1).queued_steps == 1
    assert not {"metric", "momentum", "solver"} & set(given)


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
        ("preset: soap", call(400)),
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


SHAPES = {"kernel": (6, 4), "convolution": (3, 3, 2, 5), "bias": (4,)}


def first_step_of_muon(small_file, settings):
    random = np.random.default_rng(0)
    params, grads = ({name: random.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(2))
    params, grads = jax.tree.map(jax.numpy.float32, (params, grads))
    muon = load_config(small_file, [f"optimizers.muon={{steps: 10, {settings}}}"]).optimizers.muon
    transformation = build_optimizer(muon, 10, 1).transformation
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
    return params, grads, updates


@pytest.mark.parametrize("name", ["kernel", "convolution"])
def test_the_first_step_of_muon_is_the_gradient_with_its_singular_values_near_one(small_file, name):
    _, grads, updates = first_step_of_muon(small_file, "learning_rate: 0.5")
    rows, columns = np.prod(SHAPES[name][:-1]), SHAPES[name][-1]
    left, values, right = np.linalg.svd(np.asarray(grads[name]).reshape(rows, columns), full_matrices=False)
    step = -np.asarray(updates[name]).reshape(rows, columns) / (0.5 * np.sqrt(max(1, columns / rows)))
    rotated = left.T @ step @ right.T
    assert values.max() / values.min() > 2
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=0.02)
    assert ((np.diag(rotated) > 0.6) & (np.diag(rotated) < 1.3)).all()  # what the quintic iteration comes to


def test_muon_leaves_what_is_no_matrix_to_adam(small_file):
    _, grads, updates = first_step_of_muon(small_file, "learning_rate: 0.5, adam_learning_rate: 0.1")
    # The first step of Adam with Nesterov momentum: g + b₁ m / (1 − b₁²) against √g², with m = (1 − b₁) g and b₁ = 0.9.
    length = 1 + 0.9 * 0.1 / (1 - 0.9**2)
    np.testing.assert_allclose(updates["bias"], -0.1 * length * np.sign(grads["bias"]), rtol=1e-3)
    _, _, updates = first_step_of_muon(small_file, "learning_rate: 0.5")
    np.testing.assert_allclose(updates["bias"], -0.5 * length * np.sign(grads["bias"]), rtol=1e-3)


def test_the_weight_decay_of_muon_shrinks_matrices(small_file):
    params, _, plain = first_step_of_muon(small_file, "learning_rate: 0.5")
    _, _, decayed = first_step_of_muon(small_file, "learning_rate: 0.5, weight_decay: 0.2")
    np.testing.assert_allclose(decayed["kernel"], plain["kernel"] - 0.5 * 0.2 * params["kernel"], atol=1e-5)
