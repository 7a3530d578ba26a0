"""`flashvl-kernels explain` from the command line."""

from __future__ import annotations

import pytest
import torch

from flashvl_kernels.cli import main


def test_each_call_of_an_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "rms_norm"]) == 0
    out = capsys.readouterr().out
    assert "rms_norm: cpu backend" in out and "not cuda: the tensors are on cpu" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["explain", "nothing"], "op is 'nothing'; needs one of argmax_head"),
        (["explain", "rms_norm", "--sample", "none"], "--sample is 'none'; rms_norm has"),
        (["explain", "rms_norm", "--device", "abacus"], "--device is 'abacus': "),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "rms_norm", "--device", "cuda"]) == 2
    assert "--device is 'cuda': " in capsys.readouterr().err
