"""Whether several hosts are about to do the same: their settings, their code, their data.

Hosts that differ would train on without a word, each with a learning rate of its own, or wait for each other for ever.
They compare a digest; where it differs they tell each other everything, and all end with the same sentence.
"""

import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util

import fracbits_jax
from fracbits_jax.data.sets import Dataset
from fracbits_jax.system import extras
from fracbits_jax.train import hosts

with extras.needed():
  from ml_collections import ConfigDict

# What a host may have of its own: where the data lie, and how many processes read them.
_OF_A_HOST = ('data.data_dir', 'data.workers')
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')
_MAX_TOLD = 5  # fields in the sentence

Fields = Mapping[str, str]


def settings(config: ConfigDict) -> dict[str, str]:
  """What has to be the same on all hosts before they begin, as text by name: configuration, code, libraries."""
  flat = traverse_util.flatten_dict(json.loads(config.to_json()), sep='.')
  found = {name: repr(value) for name, value in flat.items() if name not in _OF_A_HOST}
  found |= {f'the version of {name}': importlib.metadata.version(name) for name in _LIBRARIES}
  found['the version of fracbits_jax'] = fracbits_jax.__version__
  return found | {'the digest of its source files': _source_digest()}


def data(dataset: Dataset) -> dict[str, str]:
  """What has to be the same of the data: classes and sizes of the splits."""
  splits = {f'the size of {split}': str(len(getattr(dataset, split))) for split in ('train', 'validation', 'test')}
  return {**splits, 'the classes': ', '.join(dataset.class_names), 'the shape of images': str(dataset.image_shape)}


def check(mine: Fields) -> None:
  """Compares fields with those of the other hosts, all of which have to call it.

  Raises:
    ValueError: one sentence, the same on all hosts: which fields differ, and what they are where.
  """
  if not hosts.several():
    return
  devices = [{'the number of devices': _devices(i)} for i in range(jax.process_count())]
  if any(found != devices[0] for found in devices):  # what all know already, and what comparing needs
    raise ValueError(sentence(devices))
  text = json.dumps(mine, sort_keys=True).encode()
  digests = hosts.gather(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
  if (digests != digests[0]).any():
    raise ValueError(sentence([json.loads(told) for told in hosts.gather_bytes(text)]))


def sentence(fields: Sequence[Fields]) -> str:
  """How hosts, whose fields are given, differ."""
  names = sorted(set().union(*fields))
  told = [text for name in names if (text := _difference(name, [f.get(name, 'missing') for f in fields]))]
  more = f'; and {len(told) - _MAX_TOLD} more' if len(told) > _MAX_TOLD else ''
  return (
    f'the hosts are not to do the same: {"; ".join(told[:_MAX_TOLD])}{more}; give all of them the same command, code '
    'and libraries'
  )


def _difference(name: str, values: Sequence[str]) -> str | None:
  """`name` is this on some hosts and that on others; `None` where all have the same."""
  if len(set(values)) == 1:
    return None
  whose = {value: [i for i, other in enumerate(values) if other == value] for value in values}
  parts = [f'{_short(value)} on {"host" if len(at) == 1 else "hosts"} {_numbers(at)}' for value, at in whose.items()]
  return f'{name} is {" and ".join(parts)}'


def _numbers(at: Sequence[int]) -> str:
  return ', '.join(map(str, at)) if len(at) <= 4 else f'{", ".join(map(str, at[:3]))} and {len(at) - 3} more'


def _short(value: str) -> str:
  return value if len(value) <= 60 else f'{value[:40]}... ({hashlib.sha256(value.encode()).hexdigest()[:8]})'


def _devices(host: int) -> str:
  kinds = sorted(device.device_kind for device in jax.devices() if device.process_index == host)
  return ', '.join(f'{kinds.count(kind)} x {kind}' for kind in sorted(set(kinds)))


@functools.cache
def _source_digest() -> str:
  """Of the names and contents of the package's source files and tables."""
  root, found = pathlib.Path(fracbits_jax.__file__).parent, hashlib.sha256()
  for path in sorted(p for kind in ('*.py', '*.csv') for p in root.rglob(kind)):
    content = path.read_bytes()
    found.update(f'{path.relative_to(root).as_posix()} {len(content)}\n'.encode() + content)
  return found.hexdigest()[:16]
