import pathlib
import re

import jax
import jax.numpy as jnp

from fracbits_jax import platforms, policy

README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()


def test_the_example_of_an_own_model_runs_word_for_word(tmp_path, monkeypatch):
  code = re.findall(r'```python\n(.*?)```', README, re.S)[0]
  monkeypatch.chdir(tmp_path)
  images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
  names = {'images': images, 'labels': jnp.arange(4)}
  exec(code, names)
  found = policy.load('policy.json', names['table'])
  assert found.cost <= names['budget'].target
  assert all(leaf.any() for leaf in jax.tree.leaves(names['gradients']['bits']))


def test_the_example_of_an_own_step_runs_word_for_word(monkeypatch):
  (code,) = [block for block in re.findall(r'```python\n(.*?)```', README, re.S) if 'compiler_options' in block]
  asked = []
  monkeypatch.setattr(platforms, 'keep_memory', lambda: asked.append(True))  # it would hold for all other tests
  names = {'jax': jax, 'train_step': lambda state, step: state + step}
  exec(code, names)
  assert asked
  assert names['train_step'](jnp.float32(1), jnp.float32(2)) == 3


def test_files_that_the_readme_names_exist():
  root = pathlib.Path(__file__).parents[1]
  named = set(re.findall(r'`((?:configs|tests|benchmarks|docs)/[\w./]+\.\w+)`', README))
  named |= set(re.findall(r'\]\((docs/[\w.]+)\)', README))
  assert named
  assert [name for name in sorted(named) if not (root / name).exists()] == []
