"""The packaged model on a GPU: its answers are those of the CPU, its steps come from a graph."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from flashvl import FlashVL
from flashvl.demo import load_questions
from flashvl.generate import generate, generate_batch
from flashvl_bench.gpu.target import missing
from flashvl_kernels import backend, tape

if (reason := missing()) is not None:
    pytest.skip(reason, allow_module_level=True)

BACKENDS = ("cuda,torch", "triton,torch", "auto")


@cache
def packaged() -> FlashVL:
    return FlashVL.from_pretrained("tiny", device="cuda", dtype=torch.float32)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_answers_are_those_of_the_cpu(name: str) -> None:
    model = packaged()
    cpu = FlashVL.from_pretrained("tiny", dtype=torch.float32)
    requests = [(q.image, q.question) for q in load_questions()]
    expected = [each.text for each in generate_batch(cpu, requests, 16)]
    with backend(name):
        assert [each.text for each in generate_batch(model, requests, 16)] == expected
        assert [generate(model, *r, max_new_tokens=16).text for r in requests] == expected


@pytest.mark.parametrize("name", BACKENDS)
def test_steps_from_a_graph_are_those_op_by_op(name: str) -> None:
    model = packaged()
    embeds = torch.randn(30, model.config.decoder.dim, device="cuda")
    prompts, tokens = [embeds[:19], embeds[19:]], [[3, 5], [7, 11], [2, 2], [13, 17], [4, 9]]

    def steps(at_once: bool) -> tuple[Tensor, list[str]]:
        cache = model.prefill(prompts, capacity=40)[1]
        found, told = [], []
        for ids in tokens:
            if at_once:
                found.append(model.decode_step(ids, cache))
            else:
                with tape.off():
                    found.append(model.decode_step(ids, cache))
            told.append(model.explain_decode(cache))
        return torch.stack(found), told

    with backend(name):
        want, _ = steps(at_once=False)
        got, told = steps(at_once=True)
    assert told[0].startswith("op by op: a first step")
    assert told[1:] == ["a CUDA graph"] * 4
    assert torch.equal(got, want)
