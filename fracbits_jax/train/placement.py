"""Where values lie: copies and batches on the devices of all hosts, and how far the host may run ahead of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fracbits_jax.train.step import Batch, over_all_devices

_STEPS_AHEAD = 2  # that may wait for the devices, each with its batch in their memory


def replicate(tree: Any, devices: int | None = None) -> Any:
  """The tree with a leading axis of one copy for each device (by default those of all hosts), as `pmap` takes it.

  It lies on the devices as what a step returns does; otherwise the second step would be compiled anew.
  """
  copies = devices or jax.local_device_count()
  copied = jax.tree.map(lambda x: np.stack([np.asarray(x)] * copies), tree)
  return jax.tree.map(jnp.asarray, copied) if devices else _place(copied)


def unreplicate(tree: Any) -> Any:
  """One copy of a replicated tree, in host memory; what is a number there already stays one."""
  one = lambda x: np.asarray(np.asarray(x.addressable_data(0)).reshape(-1, *x.shape[1:])[0])
  return jax.tree.map(lambda x: one(x) if isinstance(x, jax.Array) else np.asarray(x), tree)


def shard(batch: dict[str, np.ndarray], devices: int | None = None) -> dict[str, np.ndarray]:
  """A batch `[N, ...]` as `[devices, N / devices, ...]`, over all local devices by default."""
  parts = devices or jax.local_device_count()
  return {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in batch.items()}


def to_devices(batch: dict[str, np.ndarray]) -> Batch:
  """A batch on the devices, each host's share on its own; the transfer goes on while the devices work."""
  return _place(shard(batch))


def _place(tree: Any) -> Any:
  """The tree on the devices of all hosts, along its leading axis, of which each host gives the part of its own."""
  sharding = over_all_devices()
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def limit_steps_ahead(results: list[Any]) -> None:
  """Waits for the devices where more than two of the results of their steps are still to come."""
  if len(results) > _STEPS_AHEAD:
    jax.block_until_ready(results[-1 - _STEPS_AHEAD])


def host_shard() -> tuple[int, int]:
  """Which share of a batch this process reads, `(index, count)`."""
  return jax.process_index(), jax.process_count()
