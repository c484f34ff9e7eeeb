"""TFDS builders of mcis, installed as `mcis_datasets`: one folder for each data set, as TFDS expects."""
