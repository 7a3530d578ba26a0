"""CUDA kernels compiled by NVRTC and kept on disk: no GPU is needed for any of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashvl_kernels.cli import main
from flashvl_kernels.cuda import ahead, nvrtc, sources, store
from flashvl_kernels.cuda.launch import Instance

pytestmark = pytest.mark.skipif(nvrtc.unavailable() is not None, reason=str(nvrtc.unavailable()))

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.VARIABLE, str(tmp_path))
    return tmp_path


def first_of(op: str) -> Instance:
    return ahead.kernels([op])[0][1]


def images(capability: int) -> dict[str, bytes]:
    return {
        instance.expression: nvrtc.compile(op, instance, capability).image
        for op, instance in ahead.kernels()
    }


def test_every_kernel_compiles_and_a_full_store_is_quick(
    empty_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bars in seconds of CPU time, of all threads: other programs do not count."""
    start = time.process_time()
    assert main(["compile", "--arch", "sm_90"]) == 0
    assert time.process_time() - start < 240.0
    count = len(ahead.kernels())
    assert capsys.readouterr().out == f"{count} kernels for sm_90 in {empty_store}\n"
    assert len(list(empty_store.iterdir())) == count >= 60
    monkeypatch.delattr(nvrtc, "_compile")
    start = time.process_time()
    found = images(90)
    assert time.process_time() - start < 1.0
    assert all(image.startswith(b"\x7fELF") for image in found.values())
    assert images(90) == found


def test_compile_says_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "nothing", "--arch", "90"]) == 1
    assert "nothing has no CUDA kernel" in capsys.readouterr().err
    assert main(["compile", "swiglu", "--arch", "75"]) == 1
    assert "need sm_80 or newer" in capsys.readouterr().err
    assert main(["compile", "swiglu", "--arch", "hopper"]) == 1
    assert "hopper" in capsys.readouterr().err


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_other_architectures(capability: int) -> None:
    instance = first_of("swiglu")
    assert nvrtc.compile("swiglu", instance, capability).image.startswith(b"\x7fELF")


def test_a_gpu_from_the_future_gets_ptx() -> None:
    newest = max(nvrtc.architectures())
    instance = first_of("swiglu")
    compiled = nvrtc.compile("swiglu", instance, newest + 20)
    assert f".target sm_{newest}".encode() in compiled.image
    assert f".entry {compiled.entry}".encode() in compiled.image


def test_a_gpu_too_old_is_told_so() -> None:
    with pytest.raises(nvrtc.CompileError, match="need sm_80 or newer; this GPU is sm_75"):
        nvrtc.target(75)


def test_an_error_of_the_compiler_names_kernel_and_file() -> None:
    instance = first_of("swiglu")
    wrong = type(instance)("swiglu_kernel<double, 8>", instance.arguments)
    with pytest.raises(nvrtc.CompileError, match=r"csrc/cuda/swiglu\.cuh does not compile"):
        nvrtc.compile("swiglu", wrong, 90)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_entry_is_built_again(damage: str, empty_store: Path) -> None:
    instance = first_of("swiglu")
    good = nvrtc.compile("swiglu", instance, 90)
    (entry,) = empty_store.iterdir()
    whole = entry.read_bytes()
    if damage == "cut":
        entry.write_bytes(whole[:-100])
    elif damage == "flipped":
        entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "empty":
        entry.write_bytes(b"")
    else:
        entry.unlink()
        entry.mkdir()
    again = nvrtc.compile("swiglu", instance, 90)
    # NVRTC does not repeat itself to the bit: a few words of the cubin count its compilations.
    assert (again.entry, len(again.image)) == (good.entry, len(good.image))
    if damage != "folder":
        assert len(entry.read_bytes()) == len(whole)
        assert store.load(entry.name) == again.entry.encode() + b"\0" + again.image


def test_a_store_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "file" / "below"))
    assert nvrtc.compile("swiglu", first_of("swiglu"), 90).entry


def test_a_change_of_any_source_makes_a_new_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = first_of("swiglu")
    nvrtc.compile("swiglu", instance, 90)
    monkeypatch.setattr(sources, "digest", lambda: "another")
    nvrtc.compile("swiglu", instance, 90)
    assert len(list(store.folder().iterdir())) == 2


def test_eight_processes_fill_one_store(empty_store: Path) -> None:
    code = (
        "from flashvl_kernels.cuda import nvrtc, plan_module\n"
        "for i in plan_module('swiglu').instances():\n"
        "    print(len(nvrtc.compile('swiglu', i, 90).image))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    printed = {process.communicate(timeout=240)[0] for process in running}
    assert len(printed) == 1 and printed.pop().count("\n") == len(ahead.kernels(["swiglu"]))
    names = [path.name for path in empty_store.iterdir()]
    assert len(names) == len(ahead.kernels(["swiglu"]))
    assert all(store.load(name) is not None for name in names)
