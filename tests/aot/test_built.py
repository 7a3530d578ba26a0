"""Kernels that nvcc compiled ahead and the extension carries: found, loaded, and never stale."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashvl_kernels import extension
from flashvl_kernels.cuda import ahead, built, driver, machine_code, nvcc, nvrtc, sources

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = [80, 90]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library that carries one op's kernels, made as the extension is."""
    compiler = shutil.which("c++")
    if shutil.which("nvcc") is None or compiler is None:
        pytest.skip("needs nvcc and a C++ compiler on PATH")
    folder = tmp_path_factory.mktemp("built")
    archive, library = folder / "cuda.zip", folder / "library.so"
    built.write(archive, ARCHITECTURES, ["swiglu"])
    command = [
        compiler, "-shared", "-fPIC", f'-DFLASHVL_CUDA_IMAGES="{archive}"',
        str(ROOT / "csrc/torch/cuda_images.cpp"), "-o", str(library),
        f"-Wl,--version-script={ROOT / 'csrc/exports.map'}",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def archive(library: Path) -> built.Archive:
    found = built.carried(str(library))
    assert found is not None
    return found


@pytest.fixture
def _carried_by_the_extension(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = extension.Extension(True, str(library), "")
    monkeypatch.setattr(extension, "EXTENSION", found)
    built.archive.cache_clear()
    yield
    built.archive.cache_clear()


def test_every_kernel_is_there_under_its_name(archive: built.Archive) -> None:
    kernels = ahead.kernels(["swiglu"])
    entries = [archive.kernel(op, kernel)[1] for op, kernel in kernels]
    assert len(set(entries)) == len(kernels)
    for (op, kernel), entry in zip(kernels, entries, strict=True):
        name = nvcc.demangled(entry).replace("flashvl::cuda::", "")
        assert name == f"void {kernel.expression}({kernel.arguments})", op


def test_the_image_has_machine_code_for_each_architecture_and_ptx_of_the_newest_family(
    archive: built.Archive, tmp_path: Path
) -> None:
    tool = machine_code.binary_tool("cuobjdump")
    if tool is None:
        pytest.skip("cuobjdump is neither on PATH nor in Triton")
    image = tmp_path / "swiglu.fatbin"
    op, kernel = ahead.kernels(["swiglu"])[0]
    image.write_bytes(archive.kernel(op, kernel)[0])
    listed = subprocess.run(
        [tool, "--list-elf", "--list-ptx", str(image)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split(".")[-2] + "." + line.split(".")[-1] for line in listed.split("\n") if line}
    assert names == {"sm_80.cubin", "sm_90.cubin", "sm_80.ptx"}


@pytest.mark.parametrize(
    ("capability", "runs"),
    [(75, False), (80, True), (86, True), (89, True), (90, True), (100, True), (120, True)],
)
def test_machine_code_runs_on_later_minor_versions_and_ptx_on_newer_gpus(
    archive: built.Archive, capability: int, runs: bool
) -> None:
    assert archive.covers(capability) is runs


def test_code_of_an_older_minor_version_only_is_not_enough(archive: built.Archive) -> None:
    archive.architectures = [86, 120]
    assert not archive.covers(80)
    assert not archive.covers(90)


@pytest.mark.usefixtures("_carried_by_the_extension")
def test_a_launch_takes_the_carried_kernel_and_loads_its_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[bytes] = []
    asked: list[tuple[Any, bytes]] = []

    def call(name: str, *args: Any) -> Any:
        if name == "cuModuleLoadData":
            loaded.append(args[0])
            return "module"
        asked.append(args)  # cuModuleGetFunction
        return len(asked)

    def refuse(*_: Any) -> None:
        raise AssertionError("NVRTC was asked for a kernel that the extension has")

    monkeypatch.setattr(driver, "_call", call)
    monkeypatch.setattr(nvrtc, "compile", refuse)
    driver.function.cache_clear()
    driver._module.cache_clear()
    try:
        assert driver.why_not_on.__wrapped__(90) is None
        kernels = ahead.kernels(["swiglu"])
        for op, kernel in kernels:
            driver.function(0, op, kernel, 90)
    finally:
        driver.function.cache_clear()
        driver._module.cache_clear()
    assert len(loaded) == 1
    assert {module for module, _ in asked} == {"module"}
    assert len({entry for _, entry in asked}) == len(kernels)


@pytest.mark.usefixtures("_carried_by_the_extension")
def test_kernels_of_other_sources_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert built.archive() is not None
    built.archive.cache_clear()
    monkeypatch.setattr(sources, "digest", lambda: "another")
    assert built.archive() is None


def test_a_library_without_kernels_has_no_archive() -> None:
    assert built.carried(ctypes.CDLL(None)._name or "libc.so.6") is None


def test_a_kernel_that_does_not_compile_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "swiglu.cuh").write_text("this is no CUDA")
    monkeypatch.setattr(sources, "folder", lambda: tmp_path / "csrc")
    with pytest.raises(nvcc.NvccError, match=r"csrc/cuda/swiglu.cuh does not compile:\n"):
        built.write(tmp_path / "cuda.zip", [90], ["swiglu"])
