"""Settings of a run that is over in seconds: a small network on small digits."""

TINY = {
  'model.name': 'resnet8',
  'model.width': 0.5,
  'data.image_size': 16,
  'data.batch_size': 128,  # nine steps an epoch
  'quant.calibration_batches': 2,
  'quant.stochastic': True,
  'budget.controlled': True,
  'eval_epochs': 1.0,
  'pretrain.epochs': 3.0,
  'search.epochs': 3.0,
  'finetune.epochs': 2.0,
}
