"""What a data set is: its splits, how its images are prepared, and what a network must know of it."""

import dataclasses

from fracbits_jax.data import sources
from fracbits_jax.data.contents import Contents

FOLDER = 'folder'  # the name of a data set that is a folder of classes
ARRAYS = 'arrays'  # the same of one that is a file of arrays
TEXT = 'text'  # the same of one that is a file of text
PHRASES = 'phrases'  # the text that is embedded
TEXTS = (TEXT, PHRASES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """What a data set is and how its images are prepared.

  Attributes:
    image_size: height and width that the network sees by default.
    channels: colour channels.
    splits: TFDS splits for training, validation (choices are made on it) and test; `None` for those that
      `splits.choose_splits` chooses.
    shift: largest random shift in training, in pixels each way.
    flip: whether training mirrors images at random.
    resized_crop: whether training takes a random crop of random size and shape (Szegedy et al. 2015), and evaluation
      the centre; images of any size are allowed then.
    embedded: whether it is made on first use, without a download.
  """

  image_size: int
  channels: int
  splits: tuple[str, str, str] | None = None
  shift: int = 0
  flip: bool = False
  resized_crop: bool = False
  embedded: bool = False


_CIFAR_SPLITS = ('train[:45000]', 'train[45000:]', 'test')
CROPPED = Spec(image_size=224, channels=3, flip=True, resized_crop=True)

SPECS = {
  'digits': Spec(image_size=32, channels=1, splits=('train', 'validation', 'test'), shift=2, embedded=True),
  'glyphs': Spec(image_size=32, channels=3, splits=('train', 'validation', 'test'), shift=2, embedded=True),
  'cifar10': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'cifar100': Spec(image_size=32, channels=3, splits=_CIFAR_SPLITS, shift=4, flip=True),
  'imagenet2012': dataclasses.replace(CROPPED, splits=('train[10000:]', 'train[:10000]', 'validation')),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """The three splits of a data set as random-access sources, and what a network must know of them.

  The classes of a text are its vocabulary.
  """

  name: str
  spec: Spec
  image_size: int
  class_names: tuple[str, ...]
  train: sources.Examples
  validation: sources.Examples
  test: sources.Examples
  contents: Contents
  notes: tuple[str, ...] = ()  # what a run should say of it, such as files that were left out
  shape: tuple[int, int, int] | None = None  # `[H, W, C]`; `None` where images are square
  target_shape: tuple[int, ...] | None = None  # of what a regression is to meet; `None` for the image itself
  tokens: str | None = None  # what a text is made of, `characters` or `bytes`; `None` of images
  context: int = 0  # tokens of a window of a text
  noise: float = 0.0  # its standard deviation on images, as a part of 255; the targets are the images before it

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`[H, W, C]` of what the network sees."""
    return (self.image_size, self.image_size, self.spec.channels) if self.shape is None else self.shape

  @property
  def in_memory(self) -> bool:
    """Whether all images are decoded already, or there are none."""
    return all(
      isinstance(split, sources.Memory | sources.Windows) for split in (self.train, self.validation, self.test)
    )
