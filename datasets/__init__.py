"""TFDS builders of mcis, installed as `mcis_datasets`: one folder a data set, in TFDS's own convention."""
