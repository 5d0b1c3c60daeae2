import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fracbits_jax import models, tasks
from fracbits_jax.tasks import CLASSIFICATION, LANGUAGE, REGRESSION

ACCURACY, (MSE, PSNR) = CLASSIFICATION.metric, REGRESSION.metrics


def test_every_network_names_a_task_and_only_autoencoders_regress():
  of = {name: tasks.of(models.create(name).task) for name in models.names()}
  assert [name for name, task in of.items() if task is REGRESSION] == ['autoencoder', 'denoiser']
  assert {name for name, task in of.items() if task is LANGUAGE} == {n for n in of if n.startswith('gpt_')}
  assert set(of.values()) == {CLASSIFICATION, REGRESSION, LANGUAGE}
  known = 'classification, regression, language, language_of_bytes'
  with pytest.raises(ValueError, match=rf"^task 'sleep' is unknown: choose one of {known}$"):
    tasks.of('sleep')
  assert tasks.of_result({}) is CLASSIFICATION  # as results have been that name none


def test_images_are_reconstructed_on_a_scale_from_0_to_1_unless_there_are_targets():
  images = np.array([[0, 255], [51, 102]], np.uint8).reshape(2, 1, 2, 1)
  outputs = jnp.array([[0.0, 0.5], [0.2, 0.4]])
  np.testing.assert_allclose(REGRESSION.terms(outputs, {'image': images})['loss'], [0.125, 0], atol=1e-12)
  batch = {'image': images, 'target': np.float32([[0, 0.5], [0.2, -0.6]])}
  np.testing.assert_allclose(REGRESSION.terms(outputs, batch)['loss'], [0, 0.5], atol=1e-6)
  assert REGRESSION.width((2, 3, 4), 10, None) == 24
  assert REGRESSION.width((2, 3, 4), 10, (5,)) == 5


@pytest.mark.parametrize(('mse', 'psnr'), [(1.0, 0.0), (0.01, 20.0), (0.02, 16.9897), (4.0, -6.0206), (0.0, 100.0)])
def test_psnr_is_that_of_signals_whose_range_is_1(mse, psnr):
  assert REGRESSION.values({'loss': mse}) == {'mse': mse, 'psnr': pytest.approx(psnr, abs=1e-4)}


@pytest.mark.parametrize('task', [CLASSIFICATION, REGRESSION], ids=lambda task: task.name)
def test_the_curvature_has_the_covariance_of_the_hessian(task):
  outputs = jnp.array([0.3, -1.0, 0.9])
  batch = {'label': jnp.array([1]), 'target': jnp.zeros((1, 3)), 'image': jnp.zeros((1, 1, 1, 1))}
  expected = jax.hessian(lambda x: jnp.mean(task.terms(x[None], batch)['loss']))(outputs)
  drawn = task.curvature(jnp.tile(outputs, (20_000, 1)), jax.random.key(0))
  np.testing.assert_allclose(drawn.T @ drawn / len(drawn), expected, atol=0.01)


def test_the_distance_from_a_teacher_is_the_mean_square_and_teaches_the_student_alone():
  student, teacher = jnp.array([[1.0, 2.0], [3.0, 5.0]]), jnp.array([[1.0, 1.0], [0.0, 5.0]])
  assert REGRESSION.distance(student, teacher, 1.0) == 2.5
  np.testing.assert_array_equal(jax.grad(REGRESSION.distance, argnums=1)(student, teacher, 1.0), 0)


def test_more_of_the_goodness_is_better_whatever_the_direction():
  assert ACCURACY.goodness(0.9) > ACCURACY.goodness(0.8)
  assert PSNR.goodness(20.0) > PSNR.goodness(19.0)
  assert MSE.goodness(0.01) > MSE.goodness(0.02)


@pytest.mark.parametrize(
  ('metric', 'value', 'reference', 'text', 'short', 'difference'),
  [
    (ACCURACY, 0.95, 0.9625, '95.00%', '95.0%', '1.25 points below it'),
    (ACCURACY, 0.95, 0.90, '95.00%', '95.0%', '5.00 points above it'),
    (ACCURACY, 0.95, 0.95004, '95.00%', '95.0%', 'as many as by it'),
    (MSE, 0.0123456, 0.01, '0.01235', '0.0123', '23.46% above it'),
    (MSE, 3.2e-7, 6.4e-7, '3.200e-07', '3.20e-07', '50.00% below it'),
    (MSE, 0.01, 0.0100001, '0.01000', '0.0100', 'the same as it'),
    (MSE, 0.01, 0.0, '0.01000', '0.0100', 'inf% above it'),
    (MSE, 0.0, 0.0, '0.000', '0.00', 'the same as it'),
    (PSNR, 19.086, 20.0, '19.09 dB', '19.1 dB', '0.91 dB below it'),
  ],
)
def test_values_and_their_differences_as_text(metric, value, reference, text, short, difference):
  assert metric.text(value) == text
  assert metric.text(value, short=True) == short
  assert metric.difference(value, reference, 'it') == difference
  assert metric.text(None) == '-'


def test_what_classification_needs_is_said():
  assert CLASSIFICATION.width((2, 3, 4), 10, None) == 10
  with pytest.raises(ValueError, match='the data have no labels, and classification needs them: give labels, or a mo'):
    CLASSIFICATION.width((2, 3, 4), 0, None)
