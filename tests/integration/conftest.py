"""One SLURM for all tests of jobs."""

import sys
from collections.abc import Iterator

import pytest

from tests.slurm_cluster import slurm_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running cluster; n1 and n2 are names on this host, so the rendezvous address is given."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"MASTER_ADDR": "127.0.0.1", "PUPUJEPA_VENV": sys.prefix}
