"""What every test gets: one torch thread, no network, no display, shapes and types checked, seeded randomness.

The order matters. Environment variables come first, so that worker and child processes inherit them. The jaxtyping
import hook comes before anything imports ``difftilt``: it checks every annotated shape in the package with beartype.
Set ``DIFFTILT_TYPECHECK=0`` to time code without that cost; tests of speed should start a child process that does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two jobs on two cores: more threads make torch 10 to 100 times slower
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

if os.environ.get("DIFFTILT_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    # An int is a float here, as in PEP 484: `alpha=1` is no mistake.
    install_import_hook("difftilt", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples every time: a red test is red for everybody. Deadlines would time the machine, not the code.
hypothesis.settings.register_profile("difftilt", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("difftilt")


@pytest.fixture
def rng() -> torch.Generator:
    """A generator of its own for each test, always at the same seed."""
    return torch.Generator().manual_seed(20240713)


POSTGRES = os.environ.get("DIFFTILT_TEST_POSTGRES")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRES else ["sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a campaign can be made: a folder, and a schema of its own on a PostgreSQL server, where one is named."""
    if request.param == "sqlite":
        yield str(tmp_path / "lab")
        return
    import psycopg
    from sqlalchemy import make_url

    url = make_url(POSTGRES or "")
    schema = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
