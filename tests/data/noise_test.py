"""Images with noise that a network is to take out: the images before are what it is to meet."""

import itertools
import math

import numpy as np
import pytest

from fracbits_jax.data import batches, images, sets

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (40, 8, 4, 1), np.uint8)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp('noise') / 'found.npz'
  np.savez(path, train_images=IMAGES, test_images=IMAGES[:7])
  return str(path)


def load(file, noise):
  return sets.load('arrays', data_dir=file, noise=noise)


def test_noise_has_the_deviation_that_is_given_and_images_stay_images():
  grey = np.full((200, 200, 1), 128, np.uint8)
  images.add_noise(grey, 0.1, np.random.default_rng(0))
  assert grey.dtype == np.uint8
  assert np.mean(grey) == pytest.approx(128, abs=0.6)
  assert np.std(grey) == pytest.approx(25.5, rel=0.02)
  black = np.zeros((200, 200, 1), np.uint8)
  images.add_noise(black, 1.0, np.random.default_rng(0))
  assert np.mean(black == 0) == pytest.approx(0.5, abs=0.02)  # half of it is clipped
  assert np.mean(black == 255) == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.01)


def test_training_meets_the_augmented_images_and_sees_new_noise_on_them_every_time(file):
  clean, noisy = (batches.train_batches(load(file, noise), batch_size=12, seed=3) for noise in (0.0, 0.2))
  first = {}
  for plain, batch in itertools.islice(zip(clean, noisy, strict=True), 6):  # two epochs
    np.testing.assert_array_equal(batch['target'], np.float32(plain['image']) / 255)
    errors = np.float32(batch['image']) - plain['image']
    assert 30 < np.sqrt(np.mean(errors**2)) < 51  # clipped at both ends
    for image, seen in zip(plain['image'], batch['image'], strict=True):
      assert not np.array_equal(first.setdefault(image.tobytes(), seen), seen) or first[image.tobytes()] is seen


def test_training_with_noise_is_the_same_with_workers_and_in_shards(file):
  create = lambda **how: batches.train_batches(load(file, 0.2), batch_size=12, seed=3, **how)
  expected = next(create())
  reader = create(workers=1)
  found = next(reader)
  reader.close()
  parts = [next(create(shard=(i, 2))) for i in range(2)]
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values)
    for i, part in enumerate(parts):
      np.testing.assert_array_equal(part[name], values[i::2])


def test_evaluation_has_the_same_noise_always_whatever_the_batches_are(file):
  def evaluated(**how):
    found = list(batches.eval_batches(load(file, 0.2), 'test', **how))
    kept = np.concatenate([batch['mask'] for batch in found]) > 0
    return {name: np.concatenate([batch[name] for batch in found])[kept] for name in ('image', 'target')}

  expected = evaluated(batch_size=7)
  np.testing.assert_array_equal(expected['target'], np.float32(IMAGES[:7]) / 255)
  for name, values in evaluated(batch_size=3).items():
    np.testing.assert_array_equal(values, expected[name])
  for i in range(2):
    for name, values in evaluated(batch_size=2, shard=(i, 2)).items():
      np.testing.assert_array_equal(values, expected[name][i::2])
  noise = np.float32(expected['image']) - IMAGES[:7]
  batch = next(batches.eval_batches(load(file, 0.2), 'validation', batch_size=4))
  others = np.float32(batch['image']) - 255 * batch['target']
  assert not any(np.allclose(a, b, atol=1) for a, b in itertools.product(noise, others))
  assert not any(np.array_equal(a, b) for a, b in itertools.combinations(noise, 2))


def test_noise_is_refused_where_there_is_something_else_to_meet(tmp_path):
  path = tmp_path / 'found.npz'
  np.savez(path, train_images=IMAGES, train_targets=np.zeros((40, 2)))
  with pytest.raises(
    ValueError, match=r'^data.noise=0.2 is for images .* data.dataset=arrays has targets of its own: l'
  ):
    load(str(path), 0.2)
  with pytest.raises(
    ValueError, match=r'^data.noise=0.2 is for images .* data.dataset=phrases is text: leave it at 0$'
  ):
    sets.load('phrases', noise=0.2)
