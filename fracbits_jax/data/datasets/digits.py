"""The 1,797 handwritten digits that scikit-learn carries, as a TFDS data set that needs no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

import io
from collections.abc import Iterator

import numpy as np

from fracbits_jax.system import extras

with extras.needed():
  import cv2
  import tensorflow_datasets as tfds


SIZE = 32
_VALIDATION_PER_CLASS = 20
_TEST_PER_CLASS = 40


class Digits(tfds.core.GeneratorBasedBuilder):
  """Grey 32 x 32 digits: 20 and 40 images of each class for validation and test, the other 1,197 for training."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': '8 x 8 digits enlarged to 32 x 32, with fixed splits.'}  # noqa: RUF012

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format='png'),
        'label': tfds.features.ClassLabel(num_classes=10),
      }
    )
    return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager
    with extras.needed():
      from sklearn import datasets

    digits = datasets.load_digits()
    members: dict[str, list[np.ndarray]] = {'train': [], 'validation': [], 'test': []}
    for label in range(10):
      # RandomState's streams are frozen, so that the splits are the same with every NumPy.
      own = np.random.RandomState(label).permutation(np.flatnonzero(digits.target == label))
      bounds = (_VALIDATION_PER_CLASS, _VALIDATION_PER_CLASS + _TEST_PER_CLASS)
      for name, part in zip(('validation', 'test', 'train'), np.split(own, bounds), strict=True):
        members[name].extend(part)
    return {name: self._generate_examples(digits, sorted(indices)) for name, indices in members.items()}

  def _generate_examples(self, digits, indices) -> Iterator:
    for i in indices:
      grey = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
      image = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
      # Already encoded, which keeps the preparation free of TensorFlow.
      yield int(i), {'image': io.BytesIO(cv2.imencode('.png', image)[1].tobytes()), 'label': int(digits.target[i])}
