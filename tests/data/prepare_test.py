import errno
import io
import pathlib
import tarfile

import cv2
import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.datasets import imagenet2012

from fracbits_jax.commands import prepare as prepare_command
from fracbits_jax.data import prepare, prepared_source
from fracbits_jax.data.datasets import without_tensorflow


class TwoGreys(tfds.core.GeneratorBasedBuilder):
  """Arrays, which TFDS has to encode, and a file that it reads through TensorFlow's functions."""

  VERSION = tfds.core.Version('1.0.0')
  fails = None

  def _info(self):
    label = tfds.features.ClassLabel(num_classes=2)
    image = tfds.features.Image(shape=(None, None, 3), encoding_format='png')
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'image': image, 'label': label}))

  def _split_generators(self, dl_manager):
    if self.fails:
      raise self.fails
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

    with tf.io.gfile.GFile(__file__) as file:
      assert 'TwoGreys' in file.read()
    for i in range(4):
      yield i, {'image': np.full((4, 6, 3), (9, 50, 200 + i), np.uint8), 'label': i % 2}


def add(archive, name, data):
  member = tarfile.TarInfo(name)
  member.size = len(data)
  archive.addfile(member, io.BytesIO(data))


def image(seed, suffix='.jpg'):
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
  return cv2.imencode(suffix, pixels)[1].tobytes()


def test_imagenet_is_prepared_from_its_archives_without_tensorflow(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 4000)  # as for a set that is larger than memory
  names = (pathlib.Path(next(iter(imagenet2012.__path__))) / 'labels.txt').read_text().split()
  with tarfile.open(tmp_path / 'ILSVRC2012_img_train.tar', 'w') as archive:
    for i, name in enumerate(names[:3]):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as members:
        add(members, f'{name}_1.JPEG', image(i))
        if i == 2:
          add(members, 'n02105855_2933.JPEG', image(9, '.png'))  # the one that is a PNG in truth
      add(archive, f'{name}.tar', inner.getvalue())
  with tarfile.open(tmp_path / 'ILSVRC2012_img_val.tar', 'w') as archive:
    for i in range(2):
      add(archive, f'ILSVRC2012_val_{i + 1:08d}.JPEG', image(i))
  prepare_command.main(['--dataset=imagenet2012', f'--data_dir={tmp_path / "data"}', f'--manual_dir={tmp_path}'])
  said = capsys.readouterr().out.splitlines()[-1]
  assert said.startswith(f'imagenet2012 5.1.0 is in {tmp_path}/data/imagenet2012/5.1.0: ')
  assert said.endswith(': train 4, validation 2 images; 1000 classes')
  builder = tfds.builder('imagenet2012', data_dir=str(tmp_path / 'data'), file_format='array_record')
  raw = builder.as_data_source('train', decoders={'image': tfds.decode.SkipDecoding()})
  source = prepared_source.Prepared(raw, name='imagenet2012', split='train', channels=3, num_classes=1000)
  assert sorted(int(source[i]['label']) for i in range(4)) == [0, 1, 2, 2]
  assert all(source[i]['image'].decode().shape == (20, 30, 3) for i in range(4))


@pytest.mark.skipif(without_tensorflow.is_installed(), reason='TensorFlow itself encodes here')
def test_arrays_are_encoded_in_their_colours_without_tensorflow(tmp_path):
  assert prepare.prepare('two_greys', str(tmp_path)).endswith(': train 4 images; 2 classes')
  raw = tfds.builder('two_greys', data_dir=str(tmp_path)).as_data_source(
    'train', decoders={'image': tfds.decode.SkipDecoding()}
  )
  source = prepared_source.Prepared(raw, name='two_greys', split='train', channels=3, num_classes=2)
  np.testing.assert_array_equal(source[0]['image'].decode()[0, 0, :2], (9, 50))
  with pytest.raises(ImportError):  # nothing of the stand-in is left
    import tensorflow  # noqa: F401


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (requests.exceptions.ConnectionError('no route'), 'two_greys cannot be downloaded: no route; check the network'),
    (OSError(errno.ENOSPC, 'No space left on device'), 'there is no space left for two_greys in'),
    (OSError('Not enough disk space. Needed: 9 GiB'), 'there is no space left for two_greys in'),
    (PermissionError(errno.EACCES, 'Permission denied'), 'two_greys cannot be written to .*: Permission denied'),
    (AttributeError("module 'tensorflow' has no attribute 'train'"), "needs the Python module 'tensorflow'"),
    (ModuleNotFoundError("No module named 'scipy'", name='scipy'), "needs the Python module 'scipy'"),
    (RuntimeError('two\nlines'), 'two_greys could not be prepared, RuntimeError: two lines'),
  ],
)
def test_what_goes_wrong_is_one_sentence(error, message, tmp_path, monkeypatch):
  monkeypatch.setattr(TwoGreys, 'fails', error)
  with pytest.raises(ValueError, match=message) as caught:
    prepare.prepare('two_greys', str(tmp_path))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('imagenet2012', r'error: imagenet2012 has no automatic download: .*ILSVRC2012_img_train.tar.* --manual_dir'),
    ('mnist3d', r"error: dataset 'mnist3d' is unknown"),
    ('folder', r'error: class folders are read as they are'),
  ],
)
def test_the_command_fails_in_one_sentence(name, message, tmp_path):
  (tmp_path / 'manual').mkdir()
  with pytest.raises(SystemExit, match=message):
    prepare_command.main([f'--dataset={name}', f'--data_dir={tmp_path}', f'--manual_dir={tmp_path / "manual"}'])
