"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peers.mnn_runtime import MnnRuntime


@pytest.fixture(scope="session")
def mnn_runtime() -> Iterator[MnnRuntime]:
    """One worker process of the real MNN runtime for the whole session."""
    pytest.importorskip("MNN")
    with MnnRuntime() as runtime:
        yield runtime
