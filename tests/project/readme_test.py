import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from fracbits_jax import policy
from fracbits_jax.commands import console
from fracbits_jax.fast import platforms

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/**/*.md'))]


class Model(nn.Module):
  """A network without quantization."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    return nn.Dense(10)(x.mean((1, 2)))


def test_the_example_of_an_own_model_runs_word_for_word(tmp_path, monkeypatch):
  code = re.findall(r'```python\n(.*?)```', README, re.S)[0]
  assert len([line for line in code.splitlines() if line]) <= 18
  monkeypatch.chdir(tmp_path)
  images, labels = jax.random.uniform(jax.random.key(0), (16, 8, 8, 3)), jnp.arange(16) % 10
  task_loss = lambda logits, labels: optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  trained = jax.jit(Model().init)(jax.random.key(0), images)
  names = {'model': Model(), 'trained_variables': trained, 'images': images, 'labels': labels, 'task_loss': task_loss}
  exec(code, names)
  found = policy.load('policy.json', names['table'])
  assert 0.9 * names['budget'].target < found.cost <= names['budget'].target
  assert names['loss'](names['learned']) < names['loss'](names['from_float'](names['net'], trained, images))


def test_the_example_of_an_own_step_runs_word_for_word(monkeypatch):
  (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'speed.md').read_text(), re.S)
  asked = []
  monkeypatch.setattr(platforms, 'keep_memory', lambda: asked.append(True))  # it would hold for all other tests
  names = {'jax': jax, 'train_step': lambda state, step: state + step}
  exec(code, names)
  assert asked
  assert names['train_step'](jnp.float32(1), jnp.float32(2)) == 3


def test_the_readme_is_read_to_the_end():
  assert len(README.encode()) <= 9000


def test_files_that_the_readme_names_exist():
  named = set(re.findall(r'`((?:configs|tests|benchmarks|docs)/[\w./]+\.\w+)`', README))
  named |= set(re.findall(r'\]\(((?:docs|benchmarks)/[\w./]+)[)#]', README))
  named |= set(re.findall(r'python ([\w/]+\.py)', README)) | set(re.findall(r'`(\w+\.(?:md|cff))`', README))
  assert {'docs/budgets.md', 'benchmarks/accuracy/study.py', 'main.py', 'CITATION.cff'} <= named
  assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_headings_that_links_into_the_documentation_name_exist():
  links = re.findall(r'\]\((docs/[\w./]+)#([\w-]+)\)', README)
  assert links
  for page, anchor in links:
    headings = re.findall(r'^#+ (.*)$', (ROOT / page).read_text(), re.M)
    assert anchor in [re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings]


def _commands() -> list[str]:
  """The commands that the README names, each once."""
  section = README.split('## The command\n')[1].split('\n## ')[0]
  shown = re.findall(r'^    fracbits-jax (\w+)', section, re.M)
  return sorted({*shown, *re.findall(r'`(\w+)`', section)})


def test_the_readme_names_every_command():
  modules = {path.stem for path in ROOT.glob('fracbits_jax/commands/*.py')}
  assert set(_commands()) == modules - {'__init__', 'console', 'train_flags'}


@pytest.mark.parametrize('name', _commands())
def test_every_command_that_the_readme_names_has_a_help(name, capsys):
  with pytest.raises(SystemExit) as ended:
    console.run(name, ['--help'], f'fracbits-jax {name}')
  assert not ended.value.code
  assert f'fracbits-jax {name}' in capsys.readouterr().out


def test_recipes_that_the_readme_names_exist(capsys):
  with pytest.raises(SystemExit):
    console.run('train', ['--list'])
  listed = capsys.readouterr().out
  named = re.findall(r'--config=(\w+)', README)
  assert named
  assert [name for name in named if not re.search(rf'\b{name}\b', listed)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_imports_of_this_package_exists(page):
  for module, names in re.findall(r'^ *from (fracbits_jax[\w.]*) import ([\w, ]+)$', page.read_text(), re.M):
    found = importlib.import_module(module)
    for name in names.split(', '):
      assert hasattr(found, name) or importlib.import_module(f'{module}.{name}')
