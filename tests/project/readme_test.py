import pathlib
import re

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fracbits_jax import policy
from fracbits_jax.fast import platforms

README = (pathlib.Path(__file__).parents[2] / 'README.md').read_text()


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
  (code,) = [block for block in re.findall(r'```python\n(.*?)```', README, re.S) if 'compiler_options' in block]
  asked = []
  monkeypatch.setattr(platforms, 'keep_memory', lambda: asked.append(True))  # it would hold for all other tests
  names = {'jax': jax, 'train_step': lambda state, step: state + step}
  exec(code, names)
  assert asked
  assert names['train_step'](jnp.float32(1), jnp.float32(2)) == 3


def test_files_that_the_readme_names_exist():
  root = pathlib.Path(__file__).parents[2]
  named = set(re.findall(r'`((?:configs|tests|benchmarks|docs)/[\w./]+\.\w+)`', README))
  named |= set(re.findall(r'\]\((docs/[\w.]+)\)', README))
  assert named
  assert [name for name in sorted(named) if not (root / name).exists()] == []
