"""Three members of etcd, shared by the tests of a module, which may stop and pause them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import children
from fleet.members import cluster, etcd
from helpers.support import needed

__all__ = ["cluster", "etcd"]


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """As elsewhere; but a member that a test has started again is the cluster's."""
    shared = request.getfixturevalue("cluster") if "cluster" in request.fixturenames else None
    before = children()
    yield
    members = set() if shared is None else {member.pid for member in shared.members}
    left = children() - before - members
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates that it signed for a member and a client."""
    openssl = needed("openssl", "openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test")
    for name in ("member", "client"):
        run(
            "req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder
