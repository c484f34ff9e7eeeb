"""The `mcis_scans` data set: brain MRI and breast ultrasound scans with lesion masks, one schema for every source."""
