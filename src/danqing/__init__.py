"""Danqing (丹青): a self-hosted image-generation service."""

from importlib.metadata import version

__version__ = version("danqing")
