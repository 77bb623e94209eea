"""Broken: made for a tokenzoo that is not this one."""

from dataclasses import dataclass

from tokenzoo import TokenReducer

requires_tokenzoo = ">=99"


@dataclass
class OtherVersion(TokenReducer):
    name = "other_version"
