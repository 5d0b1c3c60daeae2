"""A run that is over in seconds: a small network on small digits."""

from configs import digits


def tiny(folder, **changes):
  """The configuration, with its data beside the run's folder."""
  config = digits.get_config()
  config.model.name = 'resnet8'
  config.model.width = 0.5
  config.data.data_dir = str(folder / 'tfds')
  config.data.image_size = 16
  config.data.batch_size = 128  # nine steps an epoch
  config.quant.calibration_batches = 2
  config.eval_epochs = 1.0
  config.pretrain.epochs = 3.0
  config.search.epochs = 3.0
  config.finetune.epochs = 2.0
  # Whatever a state carries from step to step is in use, so that the tests of continuing see it.
  config.budget.controlled = True
  config.quant.stochastic = True
  config.update_from_flattened_dict(changes)
  return config
