"""Language modelling: the cross entropy of the next token, shown in bits."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from fracbits_jax.tasks.classification import CLASSIFICATION, soft_loss
from fracbits_jax.tasks.task import Batch, Metric, Task

_MOST_NATS = 700.0  # whose exponential is a float


def _metrics(token: str) -> tuple[Metric, ...]:
  """What is measured where the tokens are these."""
  return (
    Metric(
      name=f'bits_per_{token}',
      title=f'bits per {token}',
      higher_is_better=False,
      best=f'needs the fewest bits per {token}',
      better=f'needs fewer bits per {token}',
      least=0.0,
      digits='.4f',
      few_digits='.3f',
    ),
    Metric(
      name='perplexity',
      title='perplexity',
      higher_is_better=False,
      best='has the lowest perplexity',
      better='has a lower perplexity',
      least=1.0,
    ),
  )


def _note(token: str) -> str:
  return (
    f'Bits per {token}: the cross entropy of the next {token}, to the base 2. Perplexity: 2 to the power of that, per '
    f'{token}.'
  )


class Language(Task):
  """The next token of each of a text; the outputs are logits `[N, T, vocabulary]`.

  A batch holds windows of the text, `tokens` int32 `[N, T + 1]`: the network is called with the first T of each, and
  is to tell the last T. With probabilities p of the tokens x that come

      loss = -ln p(x),    bits = -log2 p(x),    perplexity = 2^bits = e^loss

  of the mean over all tokens. What counts as an example is a token, here a character.
  """

  name = 'language'
  metrics = _metrics('character')
  examples = 'characters'
  note = _note('character')
  keeps_scale = False
  has_temperature = True

  def of_tokens(self, tokens: str | None) -> Task:
    """The task by characters or by bytes."""
    if tokens is None:
      raise ValueError(
        f'the data are images, and the task {self.name} is for text: give data.dataset=phrases, or text with a file in '
        'data.data_dir'
      )
    return {'characters': LANGUAGE, 'bytes': LANGUAGE_OF_BYTES}[tokens]

  def counted(self, inputs: jax.ShapeDtypeStruct) -> int:
    """The tokens of a window."""
    return inputs.shape[1]

  def inputs(self, batch: Batch) -> jax.Array:
    """The tokens before those that are to be told, int32 `[N, T]`."""
    return jnp.asarray(batch['tokens'], jnp.int32)[:, :-1]

  def width(self, image_shape: Sequence[int], num_classes: int, target_shape: Sequence[int] | None) -> int:
    """A logit for each token of the vocabulary."""
    del image_shape, target_shape
    return num_classes

  def terms(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The cross entropy in nats, `[N, T]`."""
    following = jnp.asarray(batch['tokens'], jnp.int32)[:, 1:]
    return {'loss': optax.softmax_cross_entropy_with_integer_labels(outputs, following)}

  def values(self, means: Mapping[str, float]) -> dict[str, float]:
    """Bits per token and perplexity."""
    nats = means['loss']
    return {self.metric.name: nats / math.log(2), 'perplexity': math.exp(min(nats, _MOST_NATS))}

  def distance(self, outputs: jax.Array, taught: jax.Array, temperature: float) -> jax.Array:
    """`soft_loss`, a mean over the tokens."""
    return soft_loss(outputs, taught, temperature)

  def curvature(self, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """That of classification for each token, over sqrt(T): the loss of a window is a mean over its T tokens."""
    return CLASSIFICATION.curvature(outputs, key) / math.sqrt(outputs.shape[1])

  def sentence(self, values: Mapping[str, float]) -> str:
    """Such as `The test text takes 1.2345 bits per character, a perplexity of 2.353`."""
    metric, perplexity = self.metrics
    bits = f'{metric.number(values[metric.name])} {metric.title}'
    return f'The test text takes {bits}, a perplexity of {perplexity.text(values["perplexity"])}'


class LanguageOfBytes(Language):
  """The same where the tokens are bytes; a character that is not in ASCII is several."""

  name = 'language_of_bytes'
  metrics = _metrics('byte')
  examples = 'bytes'
  note = _note('byte')


LANGUAGE, LANGUAGE_OF_BYTES = Language(), LanguageOfBytes()
