"""Every recipe in `configs/` prepares, says how to run it, and means the paper's budgets."""

import dataclasses
import functools
import importlib
import inspect
import pathlib
import re

import fewer_blocks
import jax
import numpy as np
import pytest
from tiny import data_dir

from fracbits_jax import cost
from fracbits_jax.run import experiment

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
RECIPES = sorted(path.stem for path in CONFIGS.glob('*.py') if path.stem not in ('__init__', 'base'))

# The paper's targets for ImageNet at 224 x 224: recipe -> {equivalent bits: GBitOPs or MB}.
TARGETS = {
  'mbv1_bitops': {'3': 5.73, '4': 9.64, '5': 14.66},
  'mbv1_size': {'2': 1.83, '3': 2.22, '4': 2.62},
  'mbv2_bitops': {'3': 3.32, '4': 5.35},
  'mbv2_size': {'3': 2.11},
  'resnet18_bitops': {'3': 22.83, '4': 34.70},
}
# Outputs and inputs of a network for a data set that need not be there.
DATA = {
  'imagenet2012': (1000, (224, 224, 3)),
  'cifar10': (10, (32, 32, 3)),
  'cifar100': (100, (32, 32, 3)),
  'digits': (10, (32, 32, 1)),
  'digits_denoise': (256, (16, 16, 1)),
  'glyphs': (62, (32, 32, 3)),
  # Of MLPerf Tiny: visual wake words, keyword spotting, anomaly detection.
  'tiny_mobilenet': (2, (96, 96, 3)),
  'tiny_ds_cnn': (12, (49, 10, 1)),
  'tiny_autoencoder': (640, (640, 1, 1)),
  'post_training': (1000, (224, 224, 3)),
  'phrases': (62, (1, 128)),  # its characters and the unknown one, and a window of tokens
}
# A command in a header and its budget, as in `python main.py --config=configs/a.py:4    # as at 4 bits, 5.35 GBitOPs`.
COMMAND = re.compile(
  r'^python main\.py --config=configs/(\w+)\.py(?::(\S+))? *(?:# (?:as at )?(\S+) bits(?: a weight)?, (\S+) \w+)?$',
  re.M,
)


def module(name):
  return importlib.import_module(f'configs.{name}')


trace = functools.cache(cost.trace)


def traced(name: str) -> tuple[cost.Layer, ...]:
  """The layer table of a recipe's network for its own data."""
  config = module(name).get_config()
  outputs, shape = DATA[name if name in DATA else config.data.dataset]
  # SAT changes no cost, so recipes that differ in it share their table.
  quant = dataclasses.replace(experiment.quant_config(config), sat=False)
  if config.data.dataset == 'phrases':
    return trace(experiment.network(config)(quant, outputs), jax.ShapeDtypeStruct(shape, np.int32))
  return trace(experiment.network(config)(quant, outputs, max(shape)), shape)


def uniform_cost(name: str, argument: str | None) -> float:
  config = module(name).get_config(*([] if argument is None else [argument]))
  table = traced(name)
  stated = stated_bits(config)
  return cost.budget(config.budget.metric, table, **{stated: config.budget[stated]}).target


def stated_bits(config) -> str:
  """The field that says how many bits there are to be: of all operations, or a weight."""
  return 'equivalent_bits' if config.budget.bits_per_weight is None else 'bits_per_weight'


def test_there_are_recipes():
  assert len(RECIPES) >= 20
  assert set(TARGETS) < set(RECIPES)


@pytest.mark.parametrize('suffix', ['', '_kernel'])
@pytest.mark.parametrize(
  ('name', 'argument', 'target'),
  [(name, bits, target) for name, row in TARGETS.items() for bits, target in row.items()],
)
def test_equivalent_bits_cost_what_the_paper_allows(name, argument, target, suffix):
  assert {row.per_channel for row in traced(name + suffix) if row.kernel_bits is None} == {suffix == '_kernel'}
  np.testing.assert_allclose(uniform_cost(name + suffix, argument), target, rtol=0.005)


@pytest.mark.parametrize('name', ['tiny_resnet8', 'tiny_mobilenet', 'tiny_ds_cnn'])
def test_size_and_memory_beside_the_bitops_are_those_of_8_bits_in_part(name):
  table = traced(name)
  half = cost.model_size(cost.uniform_bits(table, 8), table) / 2
  np.testing.assert_allclose(module(name).get_config().budget.also.size, half, rtol=1e-6)
  memory, part = module(name).get_config().budget.also.memory, {'tiny_resnet8': 1 / 2, 'tiny_mobilenet': 2 / 3}
  assert (memory is None) == (name not in part)
  if memory is not None:
    assert 1 <= memory / (cost.peak_memory(cost.uniform_bits(table, 8), table) * part[name]) < 1.002


@pytest.mark.parametrize('name', TARGETS)
def test_variants_differ_in_what_their_names_say(name):
  start = module(name).get_config()
  changed = {'kernel': {'quant.granularity': 'kernel'}, 'pact': {'quant.sat': False}}
  changed['prune'] = {
    'quant.granularity': 'kernel',
    'quant.choices': tuple(range(9)),
    'quant.input_choices': start.quant.choices,
  }
  for variant in sorted(set(RECIPES) & {f'{name}_{suffix}' for suffix in changed}):
    expected = start.copy_and_resolve_references()
    expected.update_from_flattened_dict(changed[variant.rpartition('_')[2]])
    assert module(variant).get_config().to_dict() == expected.to_dict()


@pytest.mark.parametrize('name', RECIPES)
def test_every_header_names_its_own_command_and_its_budgets(name):
  header = inspect.getdoc(module(name))
  found = COMMAND.findall(header)
  if name == 'digits':  # the default
    assert re.search(r'^python main\.py$', header, re.M)
    return
  assert found, header
  for recipe, argument, bits, budget in found:
    assert recipe == name
    if bits:
      config = module(name).get_config(*([argument] if argument else []))
      assert config.budget[stated_bits(config)] == float(bits)
      np.testing.assert_allclose(uniform_cost(name, argument or None), float(budget), rtol=0.005)
  assert len({argument for _, argument, _, _ in found}) == len(found) == header.count('python main.py')


@pytest.mark.parametrize(
  'name', sorted(name for name in RECIPES if inspect.signature(module(name).get_config).parameters)
)
def test_the_text_after_the_colon_has_to_be_a_number(name):
  config = module(name).get_config('2.5')
  assert config.budget[stated_bits(config)] == 2.5
  for text in ('four', '', 'nan', '3 bits'):
    with pytest.raises(
      ValueError, match=f"equivalent bits '{text}' are not a number: give one after the colon"
    ) as caught:
      module(name).get_config(text)
    assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def _fewer_blocks():
  """From here on: what the costs of the paper are is tested before."""
  with fewer_blocks.mobilenets():
    yield


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.usefixtures('_fewer_blocks')
def test_every_recipe_prepares_on_digits_with_one_override(name):
  config = module(name).get_config()
  if config.data.dataset != 'phrases':  # which is embedded as well, and no images
    config.update_from_flattened_dict({'data.dataset': 'digits', 'data.data_dir': data_dir()})
  if name == 'post_training':  # which has no float network but the one that it is given
    config.phases = ('pretrain', *config.phases)
  found = experiment.prepare(config)
  searched = 0.5 if 'search' in config.phases else 0
  assert found.init_bits == pytest.approx(config.budget.equivalent_bits + searched, abs=1e-5)
  low, high = cost.cost_range(config.budget.metric, found.layers)
  assert low < found.budget.target < high
  assert {row.input_bits for row in found.layers[1:]} == ({32} if config.quant.weight_only else {None})
