"""TFDS builders of the data sets that this package brings along."""
