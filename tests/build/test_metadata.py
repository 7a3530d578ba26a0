"""The metadata: readable without torch, with requirements that never fetch a second torch."""

from __future__ import annotations

import re
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

PREPARE = """
import os, sys
sys.modules["torch"] = None   # any `import torch` now raises
os.chdir(sys.argv[1])
sys.path.insert(0, "tools")
import build_backend
print(build_backend.prepare_metadata_for_build_wheel(sys.argv[2]))
"""


@pytest.fixture
def metadata(root: Path, tmp_path: Path, run_python) -> Message:
    result = run_python(PREPARE, str(root), str(tmp_path))
    assert result.returncode == 0, result.stderr
    folder = tmp_path / result.stdout.split()[-1]
    return message_from_string((folder / "METADATA").read_text())


def test_metadata_needs_no_torch(metadata: Message) -> None:
    assert metadata["Name"] == "flashvl-kernels"
    assert metadata["Version"] == "0.1.0"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"


def test_requirements(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist") or []
    always = {re.split(r"[<>=;]", line)[0].strip() for line in required if "extra ==" not in line}
    assert always == {"torch", "numpy", "pillow", "safetensors", "tokenizers", "tqdm"}
    tested = [line for line in required if 'extra == "test"' in line]
    assert any(line.startswith("scikit-learn==") for line in tested)
    assert all("==" in line.split(";")[0] for line in tested), "the test extra is pinned exactly"


def test_one_torch_bound_everywhere(root: Path, tools: None, metadata: Message) -> None:
    import find_torch
    from flashvl_kernels import extension

    major, minor = find_torch.MINIMUM
    cmake = (root / "CMakeLists.txt").read_text()
    assert (major, minor) == extension.MINIMUM_TORCH
    assert f"FLASHVL_TORCH_TARGET 0x{major:02x}{minor:02x}000000000000" in cmake
    assert f"torch>={major}.{minor}" in (metadata.get_all("Requires-Dist") or [])


def fake_torch(folder: Path, version: str) -> str:
    """A torch that fails when imported, so that finding it proves no import happened."""
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('torch was imported')")
    info = folder / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return str(folder)


@pytest.mark.parametrize(
    ("version", "usable"),
    [("2.9.1", False), ("2.10.0", True), ("2.13.0+cpu", True), ("2.14.0a0+gitabc", True)],
)
def test_installed_torch_is_found_by_version(
    tmp_path: Path, tools: None, version: str, usable: bool
) -> None:
    import find_torch

    found = find_torch.find([str(tmp_path / "empty"), fake_torch(tmp_path / "site", version)])
    assert (found is not None) == usable
    if found is not None:
        assert (found.folder, found.version) == (tmp_path / "site" / "torch", version)


def test_torch_is_a_build_requirement_only_where_missing(
    tmp_path: Path, tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import build_backend

    import find_torch

    monkeypatch.delenv("FLASHVL_SKIP_EXT", raising=False)
    monkeypatch.setattr(find_torch, "installed_folders", lambda: [str(tmp_path)])
    assert "torch>=2.10" in build_backend.get_requires_for_build_wheel()
    fake_torch(tmp_path, "2.13.0")
    needs = build_backend.get_requires_for_build_editable()
    assert not [need for need in needs if need.startswith("torch")]


def test_tools_missing_from_path_become_build_requirements(
    tmp_path: Path, tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import build_backend

    import build_extension

    monkeypatch.setattr(build_extension.shutil, "which", lambda *_, **__: None)
    assert {"cmake>=3.20", "ninja"} <= set(build_backend.get_requires_for_build_wheel())
    monkeypatch.setenv("FLASHVL_SKIP_EXT", "1")
    assert build_backend.get_requires_for_build_wheel() == []


def test_a_tool_that_does_not_run_is_not_a_tool(tmp_path: Path, tools: None) -> None:
    import build_extension

    shim = tmp_path / "cmake"
    shim.write_text("#!/bin/sh\necho 'cmake: no version is set' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert build_extension._tool_version(str(shim)) is None
    shim.write_text("#!/bin/sh\necho cmake version 3.25.1\n")
    assert build_extension._tool_version(str(shim)) == (3, 25)
