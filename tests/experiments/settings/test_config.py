"""A configuration file says exactly what runs, or one message says where it does not."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from experiments.settings.config_file import config_to_dict, differing_keys, dump_config, load_config
from experiments.settings.errors import ConfigError
from experiments.settings.optimizers import Adam, Batches
from experiments.settings.problem import CNN

FILES = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if path.stem != "baselines"]


def test_every_field_of_the_file_and_every_default_arrives(small_file):
    config = load_config(small_file)
    assert config.name == "small"
    assert config.problem.l2 == 0.01
    assert config.optimizers.adam == Adam(epochs=2.0, batches=Batches(gradient=64), learning_rate=0.01)
    assert config.optimizers.hessian_free.batches == Batches(gradient=100, curvature=0.5, chunk_size=40)
    assert config.training is config.optimizers.adam
    assert config.recording.evaluate_every_epochs == 1.0


def test_a_configuration_cannot_be_changed_after_loading(small_file):
    config = load_config(small_file)
    with pytest.raises(FrozenInstanceError):
        config.seed = 3


def test_numbers_may_be_written_in_any_yaml_form(small_file):
    # PyYAML, which follows YAML 1.1, reads 1e-3 as a string.
    for text, value in [("1e-3", 1e-3), ("1", 1.0), (".5", 0.5), ("2.5E+1", 25.0)]:
        assert load_config(small_file, [f"optimizers.adam.learning_rate={text}"]).training.learning_rate == value


def test_overrides_reach_any_field_and_the_last_one_wins(small_file):
    overrides = ["seed=3", "problem.model={kind: cnn, channels: [4, 4], kernels: [3, 3]}", "seed=4", "optimizer=sgd"]
    config = load_config(small_file, [*overrides, "recording.evaluation_chunk_size=7"])
    assert config.seed == 4
    assert config.problem.model == CNN(kind="cnn", channels=(4, 4), kernels=(3, 3))
    assert config.training is config.optimizers.sgd
    assert config.recording.evaluation_chunk_size == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizers.adam.learning_rat=1", "optimizers.adam.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("problem.model.hiden=[3]", "problem.model.hiden: unknown key; did you mean 'hidden'?"),
        ("problm={}", "problm: unknown key; did you mean 'problem'?"),
        ("optimizers.adam.batches.curvatur=3", "did you mean 'curvature'?"),
        ("zzz=1", "zzz: unknown key; Valid here: name, seed, problem"),
        ("problem.model={kid: mlp}", "problem.model: missing its 'kind'; did you mean 'kind' where it says 'kid'?"),
        ("problem.model={kind: rnn}", "problem.model: unknown kind 'rnn'; valid: 'mlp', 'cnn'"),
        ("problem.model.hidden=[8, '8']", "problem.model.hidden.1: should be a valid integer, got '8'"),
        ("seed=1.5", "seed: should be a valid integer"),
        ("seed=true", "seed: should be a valid integer, got True"),
        ("seed=-1", "seed: should be at least 0, got -1"),
        ("optimizers.adam.learning_rate=0", "optimizers.adam.learning_rate: should be greater than 0, got 0"),
        ("optimizers.adam.learning_rate=.nan", "optimizers.adam.learning_rate: should be a finite number"),
        ("optimizers.adam.learning_rate=fast", "optimizers.adam.learning_rate: should be a valid number, got 'fast'"),
        ("optimizers.adam.b1=1", "optimizers.adam.b1: should be less than 1"),
        ("optimizers.adam.batches.gradient=all", "gradient: should be a valid integer or should be 'full', got 'all'"),
        ("optimizers.hessian_free.batches.curvature=1.5", "curvature: should be a valid integer or should be less"),
        ("optimizers.hessian_free.batches.curvature=101", "curvature (101) must not exceed gradient (100)"),
        ("optimizers.adam.batches.curvature=3", "optimizers.adam: batches.curvature has no use in a first-order"),
        ("optimizers.adam.batches.evaluation=3", "optimizers.adam: batches.evaluation has no use in a first-order"),
        ("optimizers.adam.batches.evaluation=all", "should be 'same' or 'curvature', got 'all'"),
        (
            "optimizers.adam.batches.gradient_growth={facto: 2, every_steps: 3}",
            "facto: unknown key; did you mean 'factor'",
        ),
        ("optimizers.adam.batches.gradient_growth={factor: 2}", "gradient_growth.every_steps: missing"),
        (
            "optimizers.adam.batches.gradient_growth={factor: 1, every_steps: 3}",
            "factor: should be greater than 1, got 1",
        ),
        (
            "optimizers.adam.batches={gradient_growth: {factor: 2, every_steps: 3}}",
            "optimizers.adam.batches: gradient_growth has no use with gradient: full; leave it out",
        ),
        (
            "optimizers.hessian_free.batches={curvature_growth: {factor: 2, every_steps: 3}}",
            "optimizers.hessian_free.batches: curvature_growth has no use with curvature: same",
        ),
        (
            "optimizers.hessian_free.batches={curvature_from: partition}",
            "curvature_from: partition has no use with curvature: same; leave it out, or give curvature a size",
        ),
        (
            "optimizers.hessian_free.batches={evaluation: curvature}",
            "evaluation: curvature has no use with curvature: same",
        ),
        ("optimizers.adam.epochs=null", "optimizers.adam: give a budget"),
        ("optimizers.sgd.momentum=0", "optimizers.sgd: nesterov needs a momentum above 0"),
        ("optimizers.adam=3", "optimizers.adam: should be a section (a mapping of settings), got 3"),
        ("optimizers.adam=null", "optimizer is 'adam' but optimizers.adam is missing (configured: hessian_free, sgd)"),
        (
            "optimizer=adm",
            "optimizer: should be 'hessian_free', 'adam', 'adamw', 'muon', 'sgd', 'lbfgs' or 'somax', got 'adm'",
        ),
        ("problem.data.name=minst", "problem.data.name: should be 'digits', 'mnist', 'fashion_mnist' or 'cifar10'"),
        ("name=../x", "name: "),
        ("problem.model={kind: cnn, kernels: [3]}", "problem.model: channels and kernels describe the same blocks"),
        ("seed", "expected dotted.key=value, got 'seed'"),
        ("seed.x=1", "seed.x: "),
        ("seed=[1", "seed: '[1' is not valid YAML"),
    ],
)
def test_a_wrong_override_gets_one_message_that_names_key_value_and_remedy(small_file, override, message):
    if override == "seed.x=1":
        small_file.write_text("seed: 1\n" + small_file.read_text())
    with pytest.raises(ConfigError) as error:
        load_config(small_file, [override])
    assert message in str(error.value)
    assert "pydantic" not in str(error.value)


def test_a_message_says_whether_the_file_or_the_command_line_is_wrong(small_file):
    small_file.write_text(small_file.read_text().replace("learning_rate: 1e-2", "learning_rate: -1"))
    with pytest.raises(ConfigError, match=r"^.*small\.yaml: optimizers\.adam\.learning_rate: should be greater"):
        load_config(small_file)
    with pytest.raises(ConfigError, match=r"^command line: optimizers\.adam\.learning_rate: should be greater"):
        load_config(small_file, ["optimizers.adam.learning_rate=-2"])


def test_all_mistakes_are_reported_together_one_line_each(small_file):
    with pytest.raises(ConfigError) as error:
        load_config(small_file, ["seed=x", "problem.l2=-1", "optimizers.adam.b3=0.5"])
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", 'line 2: found duplicate key "name"'),
        ("name: [a\n", "line 2: "),
        ("- a\n", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_missing_file_is_named_with_its_neighbours(small_file):
    with pytest.raises(ConfigError, match=r"smal\.yaml: no such file; .* has: small\.yaml"):
        load_config(small_file.with_name("smal.yaml"))


def test_a_dumped_configuration_reads_back_equal(small_file, tmp_path):
    growing = "optimizers.adam.batches.gradient_growth={factor: 1.5, every_steps: 3}"
    config = load_config(small_file, ["optimizer=hessian_free", growing])
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config
    assert list(config_to_dict(config))[:2] == ["name", "seed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("preset: simplenn, warm_start: 0.5", "preset: simplenn takes no options; leave out warm_start"),
        ("preset: kiros2013, initial_damping: 1", "preset: kiros2013 takes no options; leave out initial_damping"),
        ("preset: martens2010, trust_radius: 1", "martens2010 takes only initial_damping; leave out trust_radius"),
        (
            "preset: stochastic, max_cg_steps: 2, damping: constant, trust_region: none, line_search: armijo",
            "stochastic takes only max_cg_steps, initial_damping, trust_radius; "
            "leave out damping, trust_region, line_search",
        ),
        ("preset: martens", "preset: should be 'simplenn', 'martens2010', 'kiros2013', 'soap' or 'stochastic'"),
    ],
)
def test_a_preset_lets_no_option_pass_that_it_would_ignore(small_file, settings, message):
    with pytest.raises(ConfigError) as error:
        load_config(small_file, [f"optimizers.hessian_free={{steps: 1, {settings}}}"])
    assert message in str(error.value)


def test_differences_are_listed_by_dotted_key(small_file):
    old, new = load_config(small_file), load_config(small_file, ["problem.l2=0.5", "optimizers.adam.b1=0.5"])
    assert differing_keys(old, new) == ["optimizers.adam.b1: 0.9 -> 0.5", "problem.l2: 0.01 -> 0.5"]


def test_alone_an_optimizer_keeps_its_settings_and_loses_the_others(small_file):
    alone = load_config(small_file).only("sgd")
    assert alone.optimizers.configured() == ("sgd",)
    assert alone.training == load_config(small_file).optimizers.sgd


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid_and_offer_all_optimizers(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.optimizer == "hessian_free"
    assert config.optimizers.configured() == ("hessian_free", "adam", "sgd")


def test_the_configurations_are_there():
    found = [path.stem for path in CONFIGS]
    assert found == ["cifar10_cnn", "digits_cnn", "digits_mlp", "mnist_autoencoder", "mnist_cnn", "mnist_mlp"]
