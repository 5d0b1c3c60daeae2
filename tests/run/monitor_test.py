import types

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from fracbits_jax import tasks
from fracbits_jax.run import monitor
from fracbits_jax.train.step import TrainState


def test_the_speed_of_a_row_is_that_of_its_steps(monkeypatch):
  now, rows = [100.0], []
  monkeypatch.setattr(monitor.time, 'monotonic', lambda: now[0])
  config = ConfigDict({'data': {'batch_size': 8}, 'eval_epochs': 10.0, 'pretrain': {'epochs': 1.0}})
  watched = monitor.Monitor(
    types.SimpleNamespace(config=config, task=tasks.CLASSIFICATION, inputs=None),
    'pretrain',
    steps=20,
    steps_per_epoch=20,
    start=0,
    reported=0,
    best=None,
    earlier_steps=0,
    earlier_seconds=30.0,
    progress=types.SimpleNamespace(row=lambda row, **how: rows.append(row)),
  )
  state = TrainState(jnp.int32(0), {}, {}, {}, {}, jnp.float32(0))
  metrics = [{'loss': jnp.ones(1), 'accuracy': jnp.ones(1)}]
  now[0] += 5
  watched.report(10, state, metrics)
  now[0] += 7
  watched.leave_out(3)
  watched.report(15, state, metrics)
  assert [row['images_per_second'] for row in rows] == pytest.approx([16, 10])
  assert watched.seconds() == 42  # which everything counts for
