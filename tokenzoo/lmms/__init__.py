"""lmms-eval both ways: tokenzoo as one of its models, and its benchmarks as tasks of `tokenzoo compare`."""
