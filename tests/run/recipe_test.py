"""Recipes as the command line names them, and what `main.py` says of itself."""

import pathlib
import re

import pytest
from recipes_test import CONFIGS, RECIPES, module

from configs import base
from fracbits_jax.run import recipe, settings, usage

GOOD = 'from configs import base\n\ndef get_config(bits="3"):\n  config = base.get_config()\n  return config\n'


@pytest.mark.parametrize(
  ('given', 'name', 'argument'),
  [
    ('mbv1_bitops', 'mbv1_bitops', None),
    ('mbv1_bitops:4', 'mbv1_bitops', '4'),
    ('mbv1_bitops.py:2.5', 'mbv1_bitops', '2.5'),
    ('digits:', 'digits', ''),
    (str(CONFIGS / 'digits.py'), 'digits', None),
    (f'{CONFIGS / "digits"}:a:b', 'digits', 'a:b'),
  ],
)
def test_a_recipe_is_found_by_its_name_or_its_path(given, name, argument):
  found = recipe.find(given, CONFIGS)
  assert (found.path.stem, found.argument) == (name, argument)


def test_a_path_may_have_a_colon(tmp_path):
  for name in ('a:b.py', 'c d:4.py'):
    (tmp_path / name).write_text(GOOD)
    assert recipe.find(f'{tmp_path / name}', CONFIGS) == recipe.Recipe(path=tmp_path / name)
    assert recipe.find(f'{tmp_path / name}:4', CONFIGS) == recipe.Recipe(path=tmp_path / name, argument='4')
  assert recipe.load(recipe.find(f'{tmp_path / "a:b.py"}:4', CONFIGS)).seed == 0


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('', '--config= names nothing: give one of cifar100_resnet20, .*, or the path of a config file'),
    (':4', 'does not exist'),
    ('mbv1_bitop', 'the config file mbv1_bitop does not exist; did you mean mbv1_bitops'),
    ('configs/diggits.py:4', r'the config file configs/diggits.py does not exist; did you mean digits\?'),
    ('/nowhere/x:y.py', 'does not exist; the recipes are cifar100_resnet20, '),
    (str(CONFIGS), 'is a folder: give one of its files, base.py, .* more'),
    (f'{CONFIGS}:4', 'is a folder'),
  ],
)
def test_what_is_no_recipe_is_one_sentence(given, message):
  with pytest.raises(ValueError, match=message) as caught:
    recipe.find(given, CONFIGS)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('code', 'argument', 'message'),
  [
    ('def get_config(:\n', None, 'x.py, line 1, is no Python'),
    ('x = 1\n', None, 'has no function get_config'),
    ('get_config = 3\n', None, 'has no function get_config'),
    ('import no_such_module_at_all\n', None, 'x.py, line 1: ModuleNotFoundError: No module named'),
    ('\n\n1 / 0\n', None, 'x.py, line 3: ZeroDivisionError'),
    ('def get_config():\n  return int("a")\n', None, 'x.py, line 2: ValueError: invalid literal'),
    ('def get_config():\n  pass\n', None, 'get_config of .*x.py returns NoneType'),
    ('def get_config():\n  return {}\n', None, 'returns dict'),
    ('def get_config():\n  pass\n', '4', 'takes nothing after a colon: leave out :4'),
    ('def get_config(a):\n  pass\n', None, 'needs something after a colon'),
    ('def get_config():\n  return get_config()\n', None, 'x.py, line 2: RecursionError'),
    ('from configs import digits\ndef get_config(b):\n  return digits.get_config(b)\n', 'abc', "bits 'abc' are"),
    ('\0', None, 'x.py'),
    (b'\xff\xfe'.decode('latin-1') + '\x80', None, 'x.py'),
  ],
)  # fmt: skip
def test_a_config_file_that_does_not_work_is_one_sentence(tmp_path, code, argument, message):
  (tmp_path / 'x.py').write_bytes(code.encode('latin-1'))
  with pytest.raises(ValueError, match=message) as caught:
    recipe.load(recipe.Recipe(path=tmp_path / 'x.py', argument=argument))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', RECIPES)
def test_every_recipe_takes_bits_behind_a_colon(name):
  for bits in ('2.5', '3', '4', '7.25'):
    config = recipe.load(recipe.find(f'{name}:{bits}', CONFIGS))
    stated = 'bits_per_weight' if name == 'text_gpt' else 'equivalent_bits'
    assert config.budget[stated] == float(bits)
    plain = module(name).get_config().to_dict()
    plain['budget'][stated] = float(bits)
    assert config.to_dict() == plain  # and nothing else follows from them
  with pytest.raises(ValueError, match=r"the config does not load: equivalent bits 'abc' are not a number"):
    recipe.load(recipe.find(f'{name}:abc', CONFIGS))


@pytest.mark.parametrize(
  ('argument', 'meant'),
  [
    ('--config.budgt.target=5', 'budgt.target; did you mean budget.target?'),
    ('--config.quant.choises=(2,4)', 'quant.choises; did you mean quant.choices?'),
    ('--config.optimiser.name=x', 'optimiser.name; did you mean optimizer.name?'),
    ('--config.batch_size=2', 'batch_size; did you mean data.batch_size?'),
    ('--config.epochs=2', 'epochs; did you mean finetune.epochs or pretrain.epochs or search.epochs?'),
    ('--config.xyzzy', 'xyzzy; --help lists all fields'),
    ('--config.=3', '; '),
    ("--config.it's", "it's; "),
  ],
)
def test_a_mistyped_field_is_told_the_nearest(argument, meant):
  with pytest.raises(ValueError, match=r'^the config has no such field: ') as caught:
    recipe.check_overrides(base.get_config(), ['main.py', '--workdir=x', argument])
  assert meant in str(caught.value)
  assert str(caught.value).count("'") == argument.count("'")


def test_every_field_can_be_overridden():
  recipe.check_overrides(
    base.get_config(), [f'--config.{name}=1' for name in settings.FIELDS] + ['--noconfig.quant.sat']
  )


def test_a_value_of_another_kind_is_said_in_words():
  words = lambda name, value: recipe.in_words(f"flag --config.{name}={value}: invalid literal for int(): '{value}'")
  assert words('seed', 'abc') == 'seed=abc is not an integer: give an integer'
  assert words('budget.target', 'a:b') == 'budget.target=a:b is not a number: give a number or None'
  assert 'is a group of fields: give one of them, such as --config.model.name' in words('model', '5')
  assert recipe.in_words('Unknown flag') == 'Unknown flag'


@pytest.mark.parametrize(
  ('arguments', 'given', 'others'),
  [
    (['m'], 'D', ['m']),
    (['m', '--config=a', '--config.seed=1'], 'a', ['m', '--config.seed=1']),
    (['m', '--config', 'a', 'b'], 'a', ['m', 'b']),
    (['m', '--config=a', '-config=b=c'], 'b=c', ['m']),
    (['m', '--config='], '', ['m']),
    (['m', '--', '--config=a'], 'D', ['m', '--', '--config=a']),
  ],
)
def test_the_recipe_is_taken_out_of_the_arguments(arguments, given, others):
  assert recipe.take(arguments, 'D') == (given, others)


def test_a_recipe_without_a_value_is_refused():
  for arguments in (['m', '--config'], ['m', '--config', '--config.seed=1']):
    with pytest.raises(ValueError, match='--config has no value'):
      recipe.take(arguments, 'D')


def test_the_help_has_every_recipe_and_every_field_with_a_word_on_each():
  recipes, fields = dict(usage.recipes_in(CONFIGS)), list(usage.fields(CONFIGS))
  assert sorted(recipes) == RECIPES
  assert all(recipes.values())
  named = {name for name, _, _ in fields}
  of_phase = re.compile('|'.join(settings.PHASES))
  assert named == {of_phase.sub('PHASE', name) for name in settings.FIELDS}
  assert [name for name, _, meaning in fields if not meaning] == []
  text = usage.text('About.', pathlib.Path(CONFIGS))
  assert '--config.data.batch_size=256' in text
  assert '--config.quant.init_bits=None' in text
  assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(('arguments', 'asks'), [(['--help'], 1), (['-h'], 1), (['--helpfull'], 1), (['--hosts=2'], 0)])
def test_help_is_asked_for_in_the_usual_ways(arguments, asks):
  assert usage.is_asked(['--workdir=x', *arguments]) == bool(asks)
