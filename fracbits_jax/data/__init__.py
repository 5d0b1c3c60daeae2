"""From a data set's name or folder to batches: sets, sources, images, and what has to be prepared or checked before.

Public: `sets.load`, which opens a `dataset.Dataset`; `batches.train_batches` and `batches.eval_batches`;
`prepare.prepare`; `check_images.check`; `datasets`, those that need no download.
"""
