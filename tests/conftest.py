"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.peers.mnn_runtime import MnnRuntime


@pytest.fixture(scope="session")
def mnn_runtime() -> Iterator[MnnRuntime]:
    """One worker process of the real MNN runtime for the whole session."""
    if importlib.util.find_spec("MNN") is None:
        pytest.skip("the MNN wheel is not installed")
    with MnnRuntime() as runtime:
        yield runtime
