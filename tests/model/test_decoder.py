"""The decoder against transformers' Qwen2, and its paths (chunks, batches, cache, training) against
each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import flashvl_kernels as fvk
from flashvl import FlashVL, FlashVLConfig
from flashvl.config import AdapterConfig, DecoderConfig, ImagePolicy, VisionConfig
from flashvl.layers import Linear
from tests.model.released_names import qwen2, relative_error, released

FULL = DecoderConfig(1536, 2, 12, 2, 128, 8960, 512, max_positions=256)
SMALL = DecoderConfig(128, 3, 4, 2, 32, 192, 320, rope_theta=1e4, max_positions=256)


def around(decoder: DecoderConfig) -> FlashVLConfig:
    vision = VisionConfig("siglip2", 32, 1, 1, 32, 4, 8, 1e-6)
    policy = ImagePolicy(compression={"kind": "none"})
    return FlashVLConfig(vision, AdapterConfig(32, 32, decoder.dim), decoder, policy)


def loaded(decoder: DecoderConfig, theirs: torch.nn.Module, dtype: torch.dtype) -> FlashVL:
    model = FlashVL.random(around(decoder), dtype=dtype)
    rest = {k: v for k, v in model.released_state().items() if not k.startswith("llm.")}
    model.load_weights(rest | released(theirs))
    return model


def rows(count: int, dim: int, seed: int = 1) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * 0.02


@torch.no_grad()
def test_transformers_same_logits_at_full_width() -> None:
    theirs = qwen2(FULL)
    embeds = rows(24, FULL.dim)
    want = theirs(inputs_embeds=embeds[None]).logits[0]
    ours = loaded(FULL, theirs, torch.float32)
    states = ours.decoder.forward_train(embeds[None])
    assert relative_error(ours.decoder.logits(states)[0], want) < 1e-4
    assert relative_error(ours.prefill(embeds)[0], want[-1]) < 1e-4

    low = theirs.bfloat16()
    inputs = embeds.bfloat16()
    naive = low(inputs_embeds=inputs[None]).logits[0]
    mine = loaded(FULL, low, torch.bfloat16)
    got = mine.decoder.logits(mine.decoder.forward_train(inputs[None]))[0]
    last, _ = mine.prefill(inputs)
    want = low.double()(inputs_embeds=inputs.double()[None]).logits[0]
    bound = 1.1 * relative_error(naive, want)
    assert relative_error(got, want) <= bound
    # One row of 24 scatters more than all of them together: 1.1x of its own error could be luck.
    assert relative_error(last, want[-1]) <= 1.1 * max(
        relative_error(naive[-1], want[-1]), relative_error(naive, want)
    )


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_transformers_same_64_greedy_tokens(tied: bool) -> None:
    config = DecoderConfig(**{**vars(SMALL), "tie_embeddings": tied})
    theirs = qwen2(config, scale=2.0)
    if tied:
        theirs.model.embed_tokens.weight.mul_(20)
    ours = loaded(config, theirs, torch.float32)
    prompt = torch.arange(5, 17)
    want = theirs.generate(prompt[None], max_new_tokens=64, do_sample=False)[0, 12:].tolist()

    logits, cache = ours.prefill(ours.embed(prompt))
    got = [int(logits.argmax())]
    while len(got) < 64:
        got.append(int(ours.decode_greedy(got[-1], cache)[0]))
    assert got == want
    assert len(set(got)) > 20, "the same few tokens over and over would prove little"

    states, cache = ours.prefill_states(ours.embed(prompt), capacity=12)
    sampled = [int(ours.decoder.greedy(states)[0])]
    while len(sampled) < 64:
        sampled.append(int(ours.decode_step(sampled[-1], cache).argmax()))
    assert sampled == want


@torch.no_grad()
def test_unequal_prompts_together_equal_one_by_one() -> None:
    theirs = qwen2(SMALL, scale=2.0)
    model = loaded(SMALL, theirs, torch.float32)
    prompts = [model.embed(torch.arange(n) * 7 % SMALL.vocab) for n in (1, 19, 4, 11, 2)]

    def answer(batch: list[Tensor]) -> list[list[int]]:
        states, cache = model.prefill_states(batch)
        steps = [model.decoder.greedy(states)]
        for _ in range(23):
            steps.append(model.decode_greedy(steps[-1], cache))
        return torch.stack(steps, 1).tolist()

    together = answer(prompts)
    assert together == [answer([prompt])[0] for prompt in prompts]
    assert len({tuple(tokens) for tokens in together}) == 5


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@torch.no_grad()
def test_prefill_in_chunks_equals_prefill_at_once(chunk: int) -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    batch = [rows(13, SMALL.dim, 3), rows(4, SMALL.dim, 4)]
    want, whole = model.prefill(batch)
    got, cache = model.prefill(batch, chunk=chunk)
    assert relative_error(got, want) < 1e-5
    assert cache.lengths == whole.lengths == [13, 4]
    assert relative_error(model.decode_step([1, 2], cache), model.decode_step([1, 2], whole)) < 1e-5


@torch.no_grad()
def test_cache_grows_and_a_second_turn_continues_it() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    text = rows(20, SMALL.dim)
    want, _ = model.prefill(text)
    _, cache = model.prefill(text[:7], capacity=7)
    got, cache = model.prefill(text[7:18], cache)
    assert cache.lengths == [18] and cache.capacity >= 18
    got, cache = model.prefill(text[18:], cache)
    assert relative_error(got, want) < 1e-5


@torch.no_grad()
def test_padding_rows_of_training_do_not_reach_the_others() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    lengths = torch.tensor([9, 3, 6])
    embeds = torch.stack([rows(9, SMALL.dim, seed) for seed in (1, 2, 3)])
    embeds[1, 3:] = 1e3
    embeds[2, 6:] = -1e3
    states = model.decoder.forward_train(embeds, lengths)
    for b, length in enumerate(lengths.tolist()):
        alone, _ = model.prefill_states(embeds[b, :length])
        assert relative_error(states[b, length - 1 : length], alone) < 1e-5
        assert not states[b, length:].any()


def test_gradients_equal_transformers() -> None:
    config = DecoderConfig(**{**vars(SMALL), "layers": 2})
    theirs = qwen2(config)
    model = loaded(config, theirs, torch.float32).requires_grad_()
    ids = torch.arange(22).view(2, 11) * 13 % config.vocab
    theirs(input_ids=ids).logits.square().mean().backward()
    states = model.decoder.forward_train(model.embed(ids))
    model.decoder.logits(states).square().mean().backward()

    wanted = {"llm." + name: p.grad for name, p in theirs.named_parameters()}
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.copy_(parameter.grad)  # gradients, seen under released names
    got = model.released_state()
    for name, gradient in wanted.items():
        # k's bias moves every score of a row alike, so that its true gradient is zero.
        if "k_proj.bias" not in name:
            assert relative_error(got[name], gradient) < 1e-4, name


@pytest.mark.parametrize(
    ("weights", "layout"),
    [("int8", "rows"), ("int4", "rows"), *((w, "panels") for w in ("bf16", "int8", "int4"))],
)
@torch.no_grad()
def test_packed_weights_answer_like_the_floats_they_stand_for(weights: str, layout: str) -> None:
    config = around(SMALL)
    packed = FlashVL.random(config, dtype=torch.float32, weights=weights, layout=layout)
    plain = FlashVL.random(config, dtype=torch.float32, layout="rows")
    replaced = 0
    for mine, floats in zip(packed.modules(), plain.modules(), strict=True):
        if isinstance(mine, Linear) and mine.packed is not None:
            floats.weight.copy_(mine.packed.dequantize(torch.float32))
            replaced += 1
    # Decoder layers, head, adapter, encoder; the patches' weight is never of integers.
    assert replaced == 3 * 4 + 1 + 3 + 4 + (layout == "panels")
    text, image = rows(9, SMALL.dim), torch.randn(1, 3, 8, 8)
    got, cache = packed.prefill(text)
    want, reference = plain.prefill(text)
    assert relative_error(got, want) < 1e-5
    assert relative_error(packed.decode_step(3, cache), plain.decode_step(3, reference)) < 1e-5
    assert relative_error(packed.embed_image(image), plain.embed_image(image)) < 1e-5

    # The scales must survive a cast, which would round them to 8 bits.
    def scales() -> list[Tensor]:
        held = [m.packed for m in packed.modules() if isinstance(m, Linear) and m.packed]
        return [each.scale for each in held if each.scale is not None]

    before = [scale.clone() for scale in scales()]
    packed.bfloat16()
    kept = scales()
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True))
    assert packed.prefill(text.bfloat16())[0].dtype == torch.bfloat16


@torch.no_grad()
def test_rotation_tables_stay_fp32_in_a_cast_model() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    before = model.decoder.rope(model.device)
    after = copy.deepcopy(model).bfloat16().decoder.rope(model.device)
    assert after[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_wrong_calls_say_what_to_do() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    dim = SMALL.dim
    with pytest.raises(ValueError, match="embeds 1 has shape"):
        model.prefill([torch.zeros(2, dim), torch.zeros(0, dim)])
    with pytest.raises(ValueError, match="empty sequence"):
        model.prefill([])
    with pytest.raises(ValueError, match="chunk is 0"):
        model.prefill(torch.zeros(2, dim), chunk=0)
    _, cache = model.prefill(torch.zeros(250, dim))
    with pytest.raises(ValueError, match="token_id has 2 sequences, but the cache holds 1"):
        model.decode_step([1, 2], cache)
    with pytest.raises(ValueError, match="needs ids of at least 0"):
        model.decode_step(-200, cache)
    with pytest.raises(ValueError, match="holds 320, but the vocabulary has 320"):
        model.decode_step(320, cache)
    with pytest.raises(ValueError, match=r"reaches 257 positions.*max_positions is 256"):
        model.prefill(torch.zeros(7, dim), cache)
    assert cache.lengths == [250], "a refused step leaves the cache as it was"
    with pytest.raises(TypeError, match="needs int64"):
        model.embed(torch.zeros(3, dtype=torch.int32))


@torch.no_grad()
def test_sentinels_take_image_rows_and_other_negative_ids_are_refused() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    image = rows(3, SMALL.dim, 9)
    got = model.embed(torch.tensor([4, -200, -201, 5, -200]), image)
    table = model.decoder.table
    want = torch.stack([table[4], image[0], image[1], table[5], image[2]])
    assert torch.equal(got, want)
    with pytest.raises(ValueError, match="-7"):
        model.embed(torch.tensor([4, -7]))
    with pytest.raises(ValueError, match="image"):
        model.embed(torch.tensor([4, -200]))


@torch.no_grad()
def test_greedy_is_the_argmax_of_the_logits() -> None:
    model = FlashVL.random(around(SMALL), dtype=torch.float32)
    states = rows(50, SMALL.dim)
    assert torch.equal(model.decoder.greedy(states), model.decoder.logits(states).argmax(-1))
    with fvk.backend("torch"):
        assert torch.equal(model.decoder.greedy(states), model.decoder.logits(states).argmax(-1))
