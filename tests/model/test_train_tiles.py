"""Training on tiles: exact to resume, words spelled, and every pointer at what it is about."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn")

from flashvl.checkpoint import CheckpointError
from flashvl.config import FlashVLConfig
from flashvl.image import image_to_inputs
from flashvl.model import FlashVL
from flashvl.tokenizer import Tokenizer
from flashvl.train import (
    curves,
    exam,
    loop,
    tiled,
    tiled_batches,
    tiled_families,
    tiled_heldout,
    tiles,
)
from flashvl.train.dataset import to_tensors
from flashvl.train.glyphs import read_out, symbol_of
from flashvl.train.policies import SHIPPED, config_for, policies
from flashvl.train.step_speed import Timed, compare, report, sides
from flashvl.train.tile_targets import HALVES
from flashvl.train.tiled_batches import (
    Curriculum,
    Speller,
    TiledBatch,
    drawn_under,
    patched,
    policy_of,
)
from flashvl.train.tiled_example import BIG, TiledExample

TINY = FlashVLConfig.tiny()
POLICIES = {policy.name: policy for policy in policies(TINY)}
TOKENIZER = Tokenizer.from_pretrained(tiles.ASSETS / "tiny")
SPELLER = Speller(TOKENIZER, TINY.decoder.vocab)
STAGES = (
    tiles.Stage("look", 1, 1e-3, ("vision", "heads"), 2, (2, 8)),
    tiles.Stage("align", 2, 1e-3, ("adapter",), 2, (2, 2), cycle=True),
    tiles.Stage("join", 2, 1e-3, tiles.EVERYTHING, 2, (2, 8), cycle=True),
    tiles.Stage("settle", 2, 1e-3, tiles.EVERYTHING, 2, cycle=True, from_cycles=True),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def case() -> TiledExample:
    return tiled_heldout.make_cases("word", 1, 3)[0]


def trainer(out: Path, cases: list[TiledExample] | None = None) -> tiles.Trainer:
    return tiles.Trainer(out, seed=3, workers=0, stages=STAGES, cases=cases or [])


def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: None,
    case: TiledExample,
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    whole = trainer(tmp_path / "whole", [case])
    assert whole.run()

    learn = tiles.Trainer.learn
    steps = 0

    def killed(self: tiles.Trainer, stage: tiles.Stage, batch: TiledBatch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps in (3, 5, 9):  # inside the second stage, the third and the fourth
            raise KeyboardInterrupt
        return learn(self, stage, batch)

    monkeypatch.setattr(tiles.Trainer, "learn", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "killed", [case]).run()
    resumed = trainer(tmp_path / "killed", [case])
    assert resumed.run() and steps == 10
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    for name, part in whole.parts.items():
        for key, value in part.state_dict().items():
            assert torch.equal(value, resumed.parts[name].state_dict()[key]), (name, key)
    for file in ("log.csv", "progress.csv"):
        texts = [(tmp_path / run / file).read_text() for run in ("whole", "killed")]
        assert texts[0] == texts[1]
    assert (tmp_path / "whole" / "curves.png").stat().st_size > 10_000


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    trainer(tmp_path).save()
    other = tiles.Trainer(tmp_path, seed=3, scale=0.5, workers=0, stages=STAGES, cases=[])
    with pytest.raises(ValueError, match=r"scale 1.0, not 0.5: pass --scale 1.0"):
        other.resume()
    other = tiles.Trainer(tmp_path, seed=3, workers=0, stages=STAGES, cases=[], pictures=7)
    with pytest.raises(ValueError, match=r"pictures 2, not 7: pass --pictures 2"):
        other.resume()
    with pytest.raises(ValueError, match="pictures is 0; a step needs 1"):
        tiles.Trainer(tmp_path, seed=3, stages=STAGES, pictures=0)
    with pytest.raises(CheckpointError, match="has no pixel_shuffle"):
        tiles.second_input(tmp_path)
    with pytest.raises(CheckpointError, match="which is no folder"):
        tiles.Trainer(tmp_path, seed=3, start="none")


def test_a_stage_starts_from_the_mean_of_the_ends_of_cycles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: None
) -> None:
    one = trainer(tmp_path)
    learn, starts = tiles.Trainer.learn, {}

    def watched(self: tiles.Trainer, stage: tiles.Stage, batch: TiledBatch) -> dict[str, float]:
        if self.step == 0:
            ours = {name: value.clone() for name, value in self.average.items()}
            starts[stage.name] = ours, {n: v.clone() for n, v in self.kept.state_dict().items()}
        return learn(self, stage, batch)

    monkeypatch.setattr(tiles.Trainer, "learn", watched)
    one.run()
    assert len(one.cycles) == 3
    average, weights = starts["settle"]
    for name, value in weights.items():
        first, second, third = (ends[name] for ends in one.cycles)
        torch.testing.assert_close(value, (first + second) / 2)
        assert torch.equal(average[name], value), name
        torch.testing.assert_close(one.average[name], (first + second + third) / 3)
    moved = [name for name in weights if not one.cycles[0][name].equal(one.cycles[1][name])]
    assert any("decoder" in name for name in moved)
    average, weights = starts["join"]
    assert not all(average[name].equal(value) for name, value in weights.items())


def test_a_longer_list_of_stages_goes_on_from_the_end_of_a_shorter_one(
    tmp_path: Path, deterministic: None
) -> None:
    whole = trainer(tmp_path / "whole")
    assert whole.run()
    shorter = tiles.Trainer(tmp_path / "on", seed=3, workers=0, stages=STAGES[:3], cases=[])
    assert shorter.run()
    longer = trainer(tmp_path / "on")
    assert longer.run()
    for name, value in whole.average.items():
        assert torch.equal(value, longer.average[name]), name


def test_each_stage_moves_its_parts_and_no_others(tmp_path: Path, deterministic: None) -> None:
    one = trainer(tmp_path)
    before = {name: value.clone() for name, value in one.kept.state_dict().items()}
    one.run()
    moved = {name for name, value in one.kept.state_dict().items() if not value.equal(before[name])}
    assert any("vision" in name for name in moved) and any("decoder" in name for name in moved)

    align = tiles.Trainer(tmp_path / "align", 3, workers=0, stages=STAGES[1:2], cases=[])
    before = {name: value.clone() for name, value in align.kept.state_dict().items()}
    align.run()
    for name, value in align.kept.state_dict().items():
        assert name.startswith("adapter") or value.equal(before[name]), name


def test_two_inputs_share_what_follows_and_come_back_from_one_folder(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    pool, shuffle = one.adapters["pool"], one.adapters["shuffle"]
    assert shuffle.fc2 is pool.fc2 and shuffle.proj is pool.proj
    assert shuffle.fc1.weight.shape[1] == 4 * pool.fc1.weight.shape[1]
    folder = tmp_path / "exported"
    one.export(folder)
    assert (folder / tiles.SECOND).stat().st_size < 400_000
    loaded = {"pool": FlashVL.from_pretrained(folder), "shuffle": tiles.second_input(folder)}
    for family, model in loaded.items():
        assert model.config == config_for(TINY, POLICIES[SHIPPED[family]])
        expected, found = one.checkpoint(family).released_state(), model.released_state()
        assert found.keys() == expected.keys() and model.tokenizer is not None
        for name, value in found.items():
            assert torch.equal(value, expected[name].bfloat16()), name


def test_a_later_first_stage_takes_every_weight_from_the_start(
    tmp_path: Path, deterministic: None
) -> None:
    before = trainer(tmp_path / "before")
    folder = tmp_path / "exported"
    before.export(folder)
    on = tiles.Trainer(
        tmp_path / "on", 3, str(folder), workers=0, stages=STAGES, cases=[], first="join"
    )
    assert on.steps_done == 3
    expected = before.kept.state_dict()
    for name, value in on.average.items():
        assert torch.equal(value, expected[name].bfloat16().float()), name
    assert on.run()
    assert on.steps_done == 7 and len(on.cycles) == 2

    with pytest.raises(ValueError, match="first is 'sing'; needs a stage: look, align, join"):
        tiles.Trainer(tmp_path, 4, workers=0, stages=STAGES, first="sing")
    with pytest.raises(ValueError, match="first is 'join', which needs a trained start"):
        tiles.Trainer(tmp_path, 4, tiles.RANDOM, workers=0, stages=STAGES, first="join")
    (folder / tiles.SECOND).unlink()
    with pytest.raises(CheckpointError, match="has no pixel_shuffle"):
        tiles.Trainer(tmp_path, 4, str(folder), workers=0, stages=STAGES, first="join")
    other = trainer(tmp_path / "on")
    with pytest.raises(ValueError, match="not tiny: pass --start"):
        other.resume()


@pytest.mark.parametrize("name", POLICIES)
def test_training_sees_what_inference_sees(name: str) -> None:
    """Rows from the tiles' features are those of `embed_images`, under every policy."""
    policy = POLICIES[name]
    model = FlashVL.random(config_for(TINY, policy), dtype=torch.float32, layout="rows")
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    ((patches, grid),) = image_to_inputs(torch.from_numpy(policy.framed(picture)), policy.image)
    with torch.no_grad():
        rows = tiles.image_rows(model.adapter, model.vision(patches), policy, grid)
        torch.testing.assert_close(rows, model.embed_images(patches, grid))


@pytest.mark.parametrize("family", (*tiled_families.FAMILIES, tiled_families.PAGE))
@pytest.mark.parametrize("name", ("plain tiles", "overlap 2 linear", "overlap 4 crop, 9 tiles"))
def test_pointers_stand_before_a_glyph_or_at_its_name(family: str, name: str) -> None:
    """Token by token: the symbol pointed at is the character that comes next, and lies there."""
    policy = POLICIES[name]
    made = [tiled.example(8, index, BIG, family) for index in range(4)]
    arrays = drawn_under(made, policy, SPELLER)
    batch = patched(to_tensors(arrays), TINY)
    pictures, places, shares = batch.pointed
    assert len(pictures) == len(places) == len(shares) > 0
    assert batch.symbol.shape == (4 * batch.grid.tiles, 64, HALVES)
    assert shares.shape[1] == policy.image.tokens(batch.grid)
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))
    row = 0
    for picture, pointers in enumerate(arrays["pointers"]):
        for pointer in pointers:
            at = int(places[row])
            assert int(pictures[row]) == picture
            named = [made[picture].glyphs[index] for index in pointer.glyphs]
            if pointer.in_answer:
                said = TOKENIZER.decode([int(batch.ids[picture, at + 1])])
                assert symbol_of(said) == named[0].symbol
                assert batch.answers[picture, at + 1]
            else:
                said = TOKENIZER.decode([int(batch.ids[picture, at])]).strip()
                asked = arrays["turns"][picture][pointer.turn][0]
                assert said and said[-1] in asked and not batch.answers[picture, at]
            row += 1


@pytest.mark.parametrize("kind", ("word", "line"))
def test_words_are_spelled_and_read_the_same(kind: str) -> None:
    turns = (("What word is printed?", "Station", kind), ("Is it red?", "yes", "relation"))
    ids, mask = SPELLER.encode(turns, 5)
    said = [token for token, is_answer in zip(ids, mask, strict=True) if is_answer]
    ends = [n for n, token in enumerate(said) if token == TOKENIZER.im_end]
    assert [TOKENIZER.decode([t]) for t in said[: ends[0]]] == list("Station")
    assert said[ends[0] + 1 : ends[1]] == TOKENIZER.encode("yes")
    plain = TOKENIZER.decode([token for token in ids if token >= 0], skip_special=False)
    assert plain.count("Station<|im_end|>") == 1


def test_an_answer_is_not_looked_for_in_the_role_line() -> None:
    """The letters of "as" stand in "assistant" too."""
    turns = (("Read the word.", "as", "word"),)
    ids, mask = SPELLER.encode(turns, 3)
    (first, second) = SPELLER.places(ids, turns, read_out(0, "as"))
    assert mask[first + 1] and mask[second + 1] and second == first + 1
    assert TOKENIZER.decode(ids[first + 1 : first + 3]) == "as"


def test_texts_grow_to_their_full_length_halfway() -> None:
    curriculum = Curriculum(100, 60, 2, 8)
    found = [curriculum.longest(100 + step) for step in range(60)]
    assert found[0] == 2 and found[30:] == [8] * 30 and found == sorted(found)
    for number, pages in itertools.product(range(4), (0.0, 1.0)):
        kind = _, family = tiled.batch_kind(5, number, pages)
        for made in tiled.examples(5, 3, number, kind, longest=3):
            assert made.family == family
            assert family == "scene" or len(made.turn[1]) <= 3
    lengths = {len(tiled.example(6, n, BIG, "word", 4).turn[1]) for n in range(40)}
    assert lengths == {2, 3, 4}


def test_a_quarter_of_the_batches_go_through_the_second_input() -> None:
    kinds = [policy_of(TINY, 0, number, BIG).family for number in range(300)]
    assert kinds.count("shuffle") / 300 == pytest.approx(tiled_batches.SHUFFLE_SHARE, abs=0.08)


def test_a_stage_gives_the_shipped_policy_its_share_and_draws_the_others_as_before() -> None:
    for own in (0.0, 0.4, 1.0):
        found = [policy_of(TINY, 0, number, BIG, own) for number in range(300)]
        mixed = [policy_of(TINY, 0, number, BIG) for number in range(300)]
        assert all(a == b or a.name == SHIPPED["pool"] for a, b in zip(found, mixed, strict=True))
        other = sum(a != b for a, b in zip(found, mixed, strict=True))
        assert other / 300 == pytest.approx(own * (1 - 1 / 72), abs=0.08)  # some are it anyway
    assert {stage.shipped_share for stage in tiles.STAGES} == {0.0, 0.4}


def test_progress_drops_what_a_killed_run_left(tmp_path: Path) -> None:
    path = tmp_path / "progress.csv"
    for steps in (10, 20, 30):
        curves.add_progress(path, steps, {"word": steps / 100})
    curves.add_progress(path, 20, {"word": 0.5})
    assert path.read_text() == "steps,word\n10,0.100\n20,0.500\n"


def test_minutes_scale_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that gives every trial step a second."""
    now = [0.0]
    monkeypatch.setattr(tiles.time, "monotonic", lambda: now[0])

    def learn(self: tiles.Trainer, stage: tiles.Stage, batch: object) -> dict[str, float]:
        now[0] += 1.0
        return {}

    monkeypatch.setattr(tiles.Trainer, "learn", learn)
    monkeypatch.setattr(tiles.Trainer, "batches", lambda self, stage, first, n: iter(range(n)))
    steps = sum(stage.steps for stage in tiles.STAGES)

    def make(out: Path, scale: float) -> tiles.Trainer:
        return tiles.Trainer(out, 0, scale=scale)

    assert tiles.scale_for((steps + 1) / 60 / 4, make) == 0.25
    assert tiles.scale_for(1e9, make) == 1.0


def test_questions_under_a_policy_of_another_family_are_refused(
    case: TiledExample,
) -> None:
    model = FlashVL.random(config_for(TINY, POLICIES["plain tiles"]), dtype=torch.float32)
    with pytest.raises(ValueError, match="family 'shuffle'"):
        exam.answers(model, POLICIES["pixel shuffle"], [case])


def test_the_step_report_judges_pairs_of_one_batch(tmp_path: Path) -> None:
    found = {"auto": [Timed(1, 2, 1), Timed(2, 4, 2)], "torch": [Timed(2, 4, 2), Timed(4, 4, 4)]}
    lines = list(report(found))
    assert lines[1].split() == ["step", "6000.0", "ms", "10000.0", "ms", "1.67"]
    assert "median 1.75" in lines[-1] and "; meets the bar" in lines[-1]
    slower = {"auto": found["torch"], "torch": found["auto"]}
    assert "does not meet" in list(report(slower))[-1]
    # Of each batch the faster plain step counts.
    lines = list(report({**found, "torch, exact": [Timed(2, 2, 2), Timed(9, 9, 9)]}))
    assert "median 1.50" in lines[-1] and lines[1].split()[-1] == "1.67"

    one = trainer(tmp_path)
    one.enter(2)
    batches = list(one.batches(STAGES[2], one.steps_done, 1))
    timed = compare(one, batches, rounds=1, sides=sides("auto", "medium"))
    counts = {name: len(steps) for name, steps in timed.items()}
    assert counts == {"auto": 1, "torch": 1, "torch, exact": 1}
    assert all(step.backward > 0 for steps in timed.values() for step in steps)
    assert torch.get_float32_matmul_precision() == "highest"
