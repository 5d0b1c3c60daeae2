"""The task of the next token: what it measures of known logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import tasks
from fracbits_jax.tasks import CLASSIFICATION, LANGUAGE, LANGUAGE_OF_BYTES

TOKENS = np.array([[0, 1, 3, 2], [2, 2, 0, 1]], np.int32)  # two windows of three tokens and the one that follows
BATCH = {'tokens': TOKENS}


def test_the_network_sees_all_tokens_but_the_last_and_tells_all_but_the_first():
  np.testing.assert_array_equal(LANGUAGE.inputs(BATCH), TOKENS[:, :-1])
  sure = 50 * jax.nn.one_hot(TOKENS[:, 1:], 4)
  np.testing.assert_allclose(LANGUAGE.terms(sure, BATCH)['loss'], np.zeros((2, 3)), atol=1e-6)
  even = LANGUAGE.terms(jnp.zeros((2, 3, 4)), BATCH)['loss']
  assert even.shape == (2, 3)
  assert LANGUAGE.values({'loss': float(jnp.mean(even))}) == pytest.approx({'bits_per_character': 2, 'perplexity': 4})


def test_what_it_is_per_follows_the_tokens_and_less_is_better():
  by = {tokens: LANGUAGE.of_tokens(tokens) for tokens in ('characters', 'bytes')}
  assert by == {'characters': LANGUAGE, 'bytes': LANGUAGE_OF_BYTES}
  assert [by[tokens].metric.label for tokens in by] == ['bits per character', 'bits per byte']
  assert [by[tokens].examples for tokens in by] == ['characters', 'bytes']
  assert LANGUAGE.metric.goodness(1.2) > LANGUAGE.metric.goodness(1.3)
  assert LANGUAGE.metric.difference(1.26, 1.2, 'it') == '5.00% above it'
  assert tasks.of_result({'task': 'language_of_bytes'}) is LANGUAGE_OF_BYTES
  said = LANGUAGE_OF_BYTES.sentence({'bits_per_byte': 1.5, 'perplexity': 2**1.5})
  assert said == 'The test text takes 1.5000 bits per byte, a perplexity of 2.828'
  assert LANGUAGE.counted(jax.ShapeDtypeStruct((1, 64), jnp.int32)) == 64


def test_texts_and_images_are_told_apart():
  with pytest.raises(ValueError, match=r'the data are text, and the task classification is for images: give a model'):
    CLASSIFICATION.of_tokens('bytes')
  with pytest.raises(ValueError, match=r'the data are images, and the task language is for text: give data\.dataset='):
    LANGUAGE.of_tokens(None)
  assert CLASSIFICATION.of_tokens(None) is CLASSIFICATION


def test_a_perplexity_that_no_float_holds_is_still_a_number():
  assert math.isfinite(LANGUAGE.values({'loss': 1e6})['perplexity'])


def test_the_distance_is_a_mean_over_tokens():
  student, teacher = (jax.random.normal(jax.random.key(i), (2, 3, 4)) for i in range(2))
  flat = CLASSIFICATION.distance(student.reshape(6, 4), teacher.reshape(6, 4), 2.0)
  np.testing.assert_allclose(LANGUAGE.distance(student, teacher, 2.0), flat, rtol=1e-6)


def test_the_curvature_has_the_covariance_of_the_hessian_of_a_window():
  outputs, batch = jnp.array([[0.3, -1.0], [0.9, 0.2]]), {'tokens': jnp.array([[0, 1, 0]])}
  flat_loss = lambda x: jnp.mean(LANGUAGE.terms(x.reshape(1, 2, 2), batch)['loss'])
  expected = jax.hessian(flat_loss)(outputs.reshape(-1))
  drawn = LANGUAGE.curvature(jnp.tile(outputs, (20_000, 1, 1)), jax.random.key(0)).reshape(-1, 4)
  np.testing.assert_allclose(drawn.T @ drawn / len(drawn), expected, atol=0.01)
