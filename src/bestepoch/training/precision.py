"""How training calls the network: in less than single precision, replayed on a GPU, or as it is."""

from __future__ import annotations
