"""A run that is over in seconds: a small network on small digits."""

from benchmarks.shared.tiny import TINY
from configs import digits


def tiny(folder, **changes):
  """The configuration, with its data beside the run's folder."""
  config = digits.get_config()
  config.update_from_flattened_dict({**TINY, 'data.data_dir': str(folder / 'tfds'), **changes})
  return config
