"""Serving a method in stock vLLM: its entry point loads this, and `tokenzoo serve-check`."""
