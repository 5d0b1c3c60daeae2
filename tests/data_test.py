import json

import numpy as np
import pytest

from fracbits_jax import data


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  return data.load('digits', data_dir=str(tmp_path_factory.mktemp('tfds')))


def test_the_splits_are_fixed_and_share_no_image(digits):
  splits = [digits.train, digits.validation, digits.test]
  assert [len(s) for s in splits] == [1197, 200, 400]
  for split, per_class in zip(splits[1:], (20, 40), strict=True):
    labels = [split[i]['label'] for i in range(len(split))]
    assert np.bincount(labels).tolist() == [per_class] * 10
  # scikit-learn's set has a few images twice; the identical ones are counted, not the splits' overlap by index.
  seen = [{split[i]['image'].tobytes() for i in range(len(split))} for split in splits]
  assert sum(len(s) for s in seen) - len(set().union(*seen)) <= 2
  assert digits.num_classes == 10
  assert digits.image_shape == (32, 32, 1)


def test_training_batches_are_shuffled_augmented_and_determined_by_the_seed(digits):
  first, same, other = (data.train_batches(digits, batch_size=64, seed=seed) for seed in (0, 0, 1))
  a, b, c = next(first), next(same), next(other)
  assert a['image'].shape == (64, 32, 32, 1)
  assert a['image'].dtype == np.uint8
  np.testing.assert_array_equal(a['image'], b['image'])
  assert (a['label'] != c['label']).any()
  originals = {digits.train[i]['image'].tobytes() for i in range(len(digits.train))}
  assert sum(image.tobytes() not in originals for image in a['image']) > 40  # 24 of 25 shifts change an image


def test_every_epoch_sees_other_batches(digits):
  batches = data.train_batches(digits, batch_size=512, seed=0)
  first, _, second = next(batches), next(batches), next(batches)  # two batches an epoch
  assert (first['label'] != second['label']).any()


def test_the_position_can_be_saved_and_restored(digits):
  batches = data.train_batches(digits, batch_size=32, seed=3)
  for _ in range(40):
    next(batches)
  state = batches.get_state()
  expected = [next(batches)['image'] for _ in range(3)]
  again = data.train_batches(digits, batch_size=32, seed=3)
  again.set_state(state)
  for image in expected:
    np.testing.assert_array_equal(next(again)['image'], image)


def test_evaluation_counts_each_image_once(digits):
  batches = list(data.eval_batches(digits, 'validation', batch_size=64))
  assert [b['image'].shape[0] for b in batches] == [64] * 4
  assert sum(b['mask'].sum() for b in batches) == 200
  images = np.concatenate([b['image'][b['mask'] == 1] for b in batches])
  np.testing.assert_array_equal(images, np.stack([digits.validation[i]['image'] for i in range(200)]))


def test_crops_have_the_asked_size_and_show_the_image():
  image = np.arange(300 * 400 * 3, dtype=np.uint32).reshape(300, 400, 3).astype(np.uint8)
  rng = np.random.default_rng(0)
  assert all(data.random_resized_crop(image, 64, rng).shape == (64, 64, 3) for _ in range(20))
  assert data.random_resized_crop(image[:, :1], 64, rng).shape == (64, 64, 3)  # too narrow for any crop
  flat = np.full((256, 320, 3), 7, np.uint8)
  flat[:, 160 - 112 : 160 + 112] = 9  # the centre of an image whose short side is 256 already
  np.testing.assert_array_equal(data.centre_crop(flat, 224), 9)


def test_shifts_fill_with_black():
  image = np.full((8, 8, 1), 5, np.uint8)
  shifted = [data.random_shift(image, 2, np.random.default_rng(i)) for i in range(20)]
  assert all(s.shape == (8, 8, 1) for s in shifted)
  assert {int((s == 0).sum()) for s in shifted} > {0}
  assert all((s == 5).sum() >= 36 for s in shifted)


def test_data_in_a_format_without_random_access_are_explained(tmp_path):
  folder = tmp_path / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  info = {'name': 'cifar10', 'version': '3.0.2', 'fileFormat': 'tfrecord', 'splits': []}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  with pytest.raises(ValueError, match=r'cifar10 has not been prepared in .* as array_record files'):
    data.load('cifar10', data_dir=str(tmp_path))


def test_unknown_and_unprepared_data_are_explained(tmp_path):
  with pytest.raises(ValueError, match=r"dataset 'mnist3d' is unknown: choose one of digits"):
    data.load('mnist3d')
  with pytest.raises(ValueError, match=r'imagenet2012 has not been prepared .* --config.data.dataset=digits') as caught:
    data.load('imagenet2012', data_dir=str(tmp_path))
  assert 'python -m fracbits_jax.prepare --dataset=imagenet2012' in str(caught.value)
  assert f'--data_dir={tmp_path}' in str(caught.value)
  assert '\n' not in str(caught.value)
