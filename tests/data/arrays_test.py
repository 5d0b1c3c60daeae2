import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny_autoencoder, tiny_ds_cnn
from fracbits_jax.data import batches, prepare, sets
from fracbits_jax.run import experiment

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (40, 6, 4, 2), np.uint8)
LABELS = np.arange(40) % 3


def save(folder, **found):
  np.savez(folder / 'found.npz', **found)
  return str(folder / 'found.npz')


def test_examples_come_as_they_are_each_with_its_label_and_its_target(tmp_path):
  targets = rng.normal(size=(40, 3))
  arrays = {'train_images': IMAGES, 'train_labels': LABELS, 'train_targets': targets}
  parts = {f'test_{name[6:]}': x[:7] for name, x in arrays.items()}
  found = sets.load('arrays', data_dir=save(tmp_path, **arrays, **parts))
  assert (found.image_shape, found.target_shape, found.class_names) == ((6, 4, 2), (3,), ('0', '1', '2'))
  assert found.contents.sizes == (36, 4, 7)  # validation is held out
  batch = next(batches.train_batches(found, batch_size=12, seed=0))
  assert len(batch['label']) == 12
  for image, label, target in zip(batch['image'], batch['label'], batch['target'], strict=True):
    (at,) = np.flatnonzero((image == IMAGES).all((1, 2, 3)))
    assert label == LABELS[at]
    np.testing.assert_array_equal(target, np.float32(targets[at]))
  first, second = batches.eval_batches(found, 'test', batch_size=4)
  np.testing.assert_array_equal(np.concatenate([first['image'], second['image'][:3]]), IMAGES[:7])
  np.testing.assert_array_equal(np.concatenate([first['target'], second['target'][:3]]), np.float32(targets[:7]))
  assert second['mask'].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
  ('recipe', 'shape', 'outputs'), [(tiny_ds_cnn, (49, 10), 12), (tiny_autoencoder, (640,), 640)], ids=['ds_cnn', 'auto']
)
def test_the_recipes_for_features_take_them_in_the_shape_of_the_benchmark(tmp_path, recipe, shape, outputs):
  images, labels = np.zeros((160, *shape), np.uint8), np.arange(160) % 12
  labelled = {'train_labels': labels} if outputs == 12 else {}
  config = ConfigDict(recipe.get_config().to_dict())
  config.data.data_dir = save(tmp_path, train_images=images, **labelled)
  found = experiment.prepare(config)
  assert (found.float_model.num_classes, found.inputs.shape[1:]) == (outputs, (*shape, 1, 1)[:3])
  if not labelled:
    config.model.name = 'ds_cnn'
    with pytest.raises(ValueError, match='the data have no labels, and classification needs them'):
      experiment.prepare(config)


def test_other_arrays_are_other_data(tmp_path):
  one = sets.load('arrays', data_dir=save(tmp_path, train_images=IMAGES)).contents
  other = sets.load('arrays', data_dir=save(tmp_path, train_images=IMAGES[::-1])).contents
  assert one != other
  named = sets.load('arrays', data_dir=save(tmp_path, train_images=IMAGES, train_labels=LABELS, class_names=[*'abcd']))
  assert named.class_names == (*'abcd',)
  assert one.class_names == ()


@pytest.mark.parametrize(
  ('found', 'message'),
  [
    ({'images': IMAGES}, 'has no train_images but images: give an .npz file of numpy.savez with train_images'),
    ({'train_images': IMAGES, 'train_label': LABELS}, 'has train_label, which is no array of a split with images'),
    ({'train_images': IMAGES / 255}, r'are float64 \[40, 6, 4, 2\]: give uint8 arrays'),
    ({'train_images': IMAGES[:0]}, r'are uint8 \[0, 6, 4, 2\]: give uint8 arrays'),
    (
      {'train_images': IMAGES, 'test_images': IMAGES[:, :5]},
      r'test_images .* \[5, 4, 2\] an example and train_images \[',
    ),
    ({'train_images': IMAGES, 'train_labels': LABELS[:3]}, r'has 40 train_images and train_labels \[3\]: give one for'),
    ({'train_images': IMAGES, 'train_labels': LABELS - 1}, r'are int64 \[40\]: give an integer from 0 for each'),
    ({'train_images': IMAGES, 'train_labels': LABELS, 'test_images': IMAGES}, 'has train_labels and no test_labels'),
    ({'train_images': IMAGES, 'train_targets': np.full((40, 1), np.nan)}, 'or not finite: give numbers'),
    ({'train_images': IMAGES, 'train_labels': LABELS, 'class_names': [*'ab']}, 'give a text for each of 3'),
    (
      {'train_images': np.array([None])},
      'is damaged, or holds something else than arrays of numbers and text: give an .npz',
    ),
  ],
)
def test_arrays_that_do_not_fit_are_one_sentence(tmp_path, found, message):
  with pytest.raises(ValueError, match=message) as caught:
    sets.load('arrays', data_dir=save(tmp_path, **found))
  assert '\n' not in str(caught.value)


def test_what_is_no_file_of_arrays_is_one_sentence(tmp_path):
  (tmp_path / 'text').write_text('text')
  np.save(tmp_path / 'one.npy', IMAGES)
  for path, message in (
    (None, 'data.dataset=arrays needs data.data_dir: give an .npz'),
    ('nowhere.npz', r'cannot be read \(No such file'),
    ('text', 'is damaged, or holds something else'),
    ('one.npy', 'is damaged, or holds something else'),
    ('.', r'cannot be read \(Is a directory\)'),
  ):
    with pytest.raises(ValueError, match=message) as caught:
      sets.load('arrays', data_dir=path and str(tmp_path / path))
    assert '\n' not in str(caught.value)
  for how in ({'image_size': 8}, {'random_crops': True}):
    with pytest.raises(ValueError, match=f'data.{next(iter(how))}=.* is not for arrays, which are taken as they are'):
      sets.load('arrays', data_dir=save(tmp_path, train_images=IMAGES), **how)
  with pytest.raises(ValueError, match='files of arrays are read as they are'):
    prepare.prepare('arrays')
