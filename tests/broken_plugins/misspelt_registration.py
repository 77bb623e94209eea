"""Broken: `tokenzoo_method` is no hook; pluggy's check_pending finds it."""

from tokenzoo import hookimpl


@hookimpl
def tokenzoo_method():
    return []
