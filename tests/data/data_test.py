import io
import json
import pickle

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny import tiny

from fracbits_jax.data import sets, sources
from fracbits_jax.data.batches import eval_batches, train_batches
from fracbits_jax.data.datasets.digits import Digits
from fracbits_jax.data.encoded import Reading
from fracbits_jax.run import experiment


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  return sets.load('digits', data_dir=str(tmp_path_factory.mktemp('tfds')))


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
  first, same, other = (train_batches(digits, batch_size=64, seed=seed) for seed in (0, 0, 1))
  a, b, c = next(first), next(same), next(other)
  assert a['image'].shape == (64, 32, 32, 1)
  assert a['image'].dtype == np.uint8
  np.testing.assert_array_equal(a['image'], b['image'])
  assert (a['label'] != c['label']).any()
  originals = {digits.train[i]['image'].tobytes() for i in range(len(digits.train))}
  assert sum(image.tobytes() not in originals for image in a['image']) > 40  # 24 of 25 shifts change an image


def test_every_epoch_sees_other_batches(digits):
  batches = train_batches(digits, batch_size=512, seed=0)
  first, _, second = next(batches), next(batches), next(batches)  # two batches an epoch
  assert (first['label'] != second['label']).any()


def test_the_position_can_be_saved_and_restored(digits):
  batches = train_batches(digits, batch_size=32, seed=3)
  for _ in range(40):
    next(batches)
  state = batches.get_state()
  expected = [next(batches)['image'] for _ in range(3)]
  again = train_batches(digits, batch_size=32, seed=3)
  again.set_state(state)
  for image in expected:
    np.testing.assert_array_equal(next(again)['image'], image)


def test_evaluation_counts_each_image_once(digits):
  batches = list(eval_batches(digits, 'validation', batch_size=64))
  assert [b['image'].shape[0] for b in batches] == [64] * 4
  assert sum(b['mask'].sum() for b in batches) == 200
  images = np.concatenate([b['image'][b['mask'] == 1] for b in batches])
  np.testing.assert_array_equal(images, np.stack([digits.validation[i]['image'] for i in range(200)]))


def test_an_embedded_set_that_another_run_makes_at_the_same_time_is_read(tmp_path, monkeypatch):
  prepare = Digits.download_and_prepare
  where = lambda name: dict(data_dir=str(tmp_path / name), file_format='array_record')

  def too_late(builder):
    prepare(Digits(**where('first')))
    raise OSError(39, 'Directory not empty')

  monkeypatch.setattr(Digits, 'download_and_prepare', too_late)
  assert len(sets.load('digits', data_dir=str(tmp_path / 'first')).test) == 400
  with pytest.raises(ValueError, match=r'digits cannot be written to .*second.*: Directory not empty'):
    sets.load('digits', data_dir=str(tmp_path / 'second'))


class SomeGreys(tfds.core.GeneratorBasedBuilder):
  """Small images, number i all of value i, in one split."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    image = tfds.features.Image(shape=(8, 8, 1), encoding_format='png')
    label = tfds.features.ClassLabel(num_classes=2)
    features = tfds.features.FeaturesDict({'image': image, 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i in range(40):
      encoded = cv2.imencode('.png', np.full((8, 8, 1), i, np.uint8))[1].tobytes()
      yield i, {'image': io.BytesIO(encoded), 'label': i % 2}


def test_images_that_are_held_out_are_decoded_with_their_labels(tmp_path, monkeypatch):
  monkeypatch.setattr(sets, '_READ_AT_ONCE', 5)  # splits of 32, 4 and 4 images: with a rest and in less than one part
  SomeGreys(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
  dataset = sets.load('some_greys', data_dir=str(tmp_path))
  assert dataset.in_memory
  splits = [[s[i] for i in range(len(s))] for s in (dataset.train, dataset.validation, dataset.test)]
  assert list(map(len, splits)) == [32, 4, 4]
  values = [int(example['image'][0, 0, 0]) for split in splits for example in split]
  assert sorted(values) == list(range(40))
  assert [int(example['label']) for split in splits for example in split] == [value % 2 for value in values]
  assert all((example['image'] == example['image'][0, 0, 0]).all() for split in splits for example in split)


def test_data_in_a_format_without_random_access_are_explained(tmp_path):
  folder = tmp_path / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  info = {'name': 'cifar10', 'version': '3.0.2', 'fileFormat': 'tfrecord', 'splits': []}
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  with pytest.raises(ValueError, match=r'cifar10 has not been prepared in .* as array_record files'):
    sets.load('cifar10', data_dir=str(tmp_path))


CLASSES = ('cat', 'dog', 'eel')


def jpegs(split, count):
  """`count` encoded images of various sizes, sorted by class, and their labels."""
  rng = np.random.default_rng(len(split))
  for i in range(count):
    colours = rng.integers(0, 256, (4, 5, 3), np.uint8)
    image = cv2.resize(colours, (70 + 3 * i, 60 + i), interpolation=cv2.INTER_CUBIC)
    yield cv2.imencode('.jpg', image)[1].tobytes(), i * len(CLASSES) // count


class SomeAnimals(tfds.core.GeneratorBasedBuilder):
  """The images of `jpegs` in a split for training and one for validation, in their order."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    label = tfds.features.ClassLabel(names=CLASSES)
    features = tfds.features.FeaturesDict({'image': tfds.features.Image(encoding_format='jpeg'), 'label': label})
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples('train', 30), 'validation': self._generate_examples('validation', 7)}

  def _generate_examples(self, split, count):
    for i, (encoded, label) in enumerate(jpegs(split, count)):
      yield i, {'image': io.BytesIO(encoded), 'label': -1 if (split, i) == ('validation', 5) else label}


@pytest.fixture(scope='module')
def animals(tmp_path_factory):
  """The same images twice: prepared by TFDS, and as a folder of classes."""
  root = tmp_path_factory.mktemp('animals')
  for split, count in (('train', 30), ('val', 7)):
    for i, (encoded, label) in enumerate(jpegs({'val': 'validation'}.get(split, split), count)):
      path = root / split / CLASSES[label] / f'{i:02d}.{("JPG", "jpeg")[i % 2]}'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encoded)
  SomeAnimals(data_dir=str(root), file_format='array_record').download_and_prepare()
  load = lambda name: sets.load(name, data_dir=str(root), image_size=32)
  return load('some_animals'), load('folder')


def test_a_folder_of_small_images_can_be_taken_whole(animals, tmp_path):
  folder = animals[1]
  whole = sets.load('folder', data_dir=str(folder.train.path(0)).rsplit('/', 3)[0], image_size=32, random_crops=False)
  assert (whole.spec.resized_crop, whole.spec.shift, whole.spec.flip) == (False, 4, True)
  assert (
    sets.load('folder', data_dir=str(folder.train.path(0)).rsplit('/', 3)[0], random_crops=True).spec == folder.spec
  )


def test_tfds_and_class_folders_give_the_same_batches(animals):
  for dataset in animals:
    assert dataset.class_names == CLASSES
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [27, 3, 7]
    assert dataset.spec.resized_crop
  prepared, folder = (train_batches(dataset, batch_size=8, seed=1) for dataset in animals)
  for _ in range(4):  # into the second epoch
    a, b = next(prepared), next(folder)
    assert a['image'].shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_array_equal(a['label'], b['label'])
  prepared, folder = (list(eval_batches(dataset, 'validation', batch_size=2)) for dataset in animals)
  assert [b['mask'].tolist() for b in folder] == [[1, 1], [1, 0]]
  assert {int(label) for b in folder for label in b['label'][b['mask'] == 1]} == {0, 1, 2}
  for a, b in zip(prepared, folder, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])


def test_a_label_outside_the_range_is_refused_by_name(animals):
  prepared, _ = animals
  with pytest.raises(ValueError, match=r"some_animals, split 'validation', example 5 has the label -1: .* from 0 to 2"):
    list(eval_batches(prepared, 'test', batch_size=4))


def test_sources_can_be_sent_to_workers(animals, digits):
  for source in (*(dataset.train for dataset in animals), digits.train):
    again = pickle.loads(pickle.dumps(source))
    assert again[2]['label'] == source[2]['label']
    assert isinstance(source, sources.Memory) or again[2]['image'] == source[2]['image']


@pytest.mark.parametrize(
  ('name', 'size', 'shift', 'resized_crop', 'channels'),
  [
    ('mnist', 28, 3, False, 1),
    ('svhn_cropped', 32, 4, False, 3),
    ('stl10', 224, 0, True, 3),
    ('food101', 224, 0, True, 3),
  ],
)
def test_any_classification_set_of_tfds_has_a_spec(name, size, shift, resized_crop, channels):
  spec = sets.check_name(name)
  assert (spec.image_size, spec.shift, spec.resized_crop, spec.channels) == (size, shift, resized_crop, channels)
  assert spec.flip


def test_sets_that_are_no_image_classification_are_refused():
  with pytest.raises(ValueError, match=r"dataset 'voc' is not made of an image and a class label each, it holds image"):
    sets.check_name('voc')


def test_unknown_and_unprepared_data_are_explained(tmp_path):
  with pytest.raises(ValueError, match=r"dataset 'mnist3d' is unknown: choose one of digits"):
    sets.load('mnist3d')
  with pytest.raises(ValueError, match=r'imagenet2012 has not been prepared .* --config.data.dataset=digits') as caught:
    sets.load('imagenet2012', data_dir=str(tmp_path))
  assert 'python -m fracbits_jax.prepare --dataset=imagenet2012' in str(caught.value)
  assert f'--data_dir={tmp_path}' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_orientation_and_background_reach_the_batches_where_they_are_configured(tmp_path):
  half = np.zeros((64, 96, 4), np.uint8)
  half[:, :48] = 200, 100, 50, 255  # the right half is transparent, over black
  note = Image.Exif()
  note[0x0112] = 6  # a quarter turn: the left half is to be the upper one
  for i in range(10):
    path = tmp_path / 'train' / 'ab'[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(half).save(path, exif=note)

  def first(**reading):
    dataset = sets.load('folder', data_dir=str(tmp_path), image_size=16, reading=Reading(**reading))
    return next(eval_batches(dataset, 'test', batch_size=1))['image'][0]

  assert first()[:, :4, 0].min() == 200
  assert first()[:, -4:].max() == 0
  assert first(exif_orientation=True)[:4, :, 0].min() == 200
  assert first(exif_orientation=True)[-4:].max() == 0
  assert first(background=(1, 2, 255))[:, -4:].reshape(-1, 3).tolist() == [[1, 2, 255]] * 64
  both = first(exif_orientation=True, background=(255, 255, 255))
  assert both[-4:].min() == 255
  assert both[:4, :, 0].max() == 200


def test_a_background_of_the_configuration_is_checked_before_the_data_are_opened(tmp_path):
  config = tiny(**{'data.background': (255, 255, 300)})
  with pytest.raises(ValueError, match=r'^data.background=\(255, 255, 300\) is no colour: give red, green and blue'):
    experiment.prepare(config)
  assert not (tmp_path / 'tfds').exists()
