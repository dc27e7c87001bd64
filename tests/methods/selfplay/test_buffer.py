from __future__ import annotations

import io
import math
import tracemalloc

import pytest
import torch

from unigame.errors import UserError
from unigame.methods.selfplay import HardSample, HardSampleBuffer, stack_compact


def sample(hardness: float, source: str | int = 0, step: int = 0, compact=None) -> HardSample:
    codes = torch.tensor([1, 2, 3]) if compact is None else compact
    return HardSample(codes, "how many", "two", hardness, 0.9, source, step)


def hardnesses(buffer: HardSampleBuffer) -> list[float]:
    return [s.hardness for s in buffer.samples]


def test_keeps_the_hardest():
    buffer = HardSampleBuffer(capacity=3)
    assert buffer.push([sample(h) for h in (1.0, 5.0, 3.0)]) == 3
    assert buffer.push([sample(4.0), sample(0.5)]) == 1
    assert hardnesses(buffer) == [5.0, 4.0, 3.0]


def test_ties_do_not_crash_and_the_newest_win():
    buffer = HardSampleBuffer(capacity=2)
    buffer.push([sample(1.0, step=1), sample(1.0, step=2), sample(1.0, step=3)])
    assert [s.step for s in buffer.samples] == [3, 2]
    buffer.push([sample(1.0, step=4)])
    assert [s.step for s in buffer.samples] == [4, 3]


def test_cap_per_source():
    buffer = HardSampleBuffer(capacity=10, per_source=2)
    buffer.push([sample(h, source="a") for h in (1.0, 2.0, 3.0)])
    buffer.push([sample(0.1, source="b"), sample(9.0, source="a")])
    assert [(s.source, s.hardness) for s in buffer.samples] == [("a", 9.0), ("a", 3.0), ("b", 0.1)]


def test_samples_of_nobody_are_not_capped():
    buffer = HardSampleBuffer(capacity=10, per_source=1)
    buffer.push([sample(h, source="") for h in (1.0, 2.0, 3.0)])
    assert len(buffer) == 3


def test_age_is_counted_in_steps_since_mining():
    buffer = HardSampleBuffer(capacity=3)
    assert buffer.age_quantiles(9) == {}
    buffer.push([sample(1.0, step=n) for n in (2, 5, 8)])
    assert buffer.age_quantiles(9, (0.0, 0.5, 1.0)) == {"q00": 1, "q50": 4, "q100": 7}


def test_a_replay_writes_back_what_it_found_and_when():
    buffer = HardSampleBuffer(capacity=3)
    buffer.push([sample(h) for h in (5.0, 4.0, 3.0)])
    five, four, three = buffer.samples
    assert buffer.refresh([five, three], [1.0, math.nan], [False, True], step=7) == (0, 0)
    assert [(s.hardness, s.seen) for s in buffer.samples] == [(4.0, None), (3.0, None), (1.0, 7)]
    buffer.push([sample(2.0)])  # what used to be the hardest is the first to go
    assert hardnesses(buffer) == [4.0, 3.0, 2.0]
    assert buffer.samples[0] is four and buffer.samples[1] is three


def test_what_u_has_learned_leaves():
    buffer = HardSampleBuffer(capacity=3)
    buffer.push([sample(h) for h in (5.0, 4.0, 3.0)])
    five, four, three = buffer.samples
    assert buffer.refresh([three, five], [0.1, 4.5], [True, False], step=7) == (1, 0)
    assert hardnesses(buffer) == [4.5, 4.0]
    assert buffer.refresh([three], [9.0], [False], step=8) == (0, 0)  # it does not come back
    assert hardnesses(buffer) == [4.5, 4.0]


def test_what_u_cannot_learn_leaves_after_max_replays():
    buffer, other = HardSampleBuffer(max_replays=2), HardSampleBuffer(max_replays=2)
    buffer.push([sample(5.0), sample(4.0)])
    five = buffer.samples[0]
    assert buffer.refresh([five], [6.0], [False], step=7) == (0, 0)
    assert buffer.refresh([five], [math.nan], [False], step=8) == (0, 0)  # no replay that counts
    other.load_state_dict(buffer.state_dict())  # the count goes on in a resumed run
    for each in (buffer, other):
        assert each.refresh(each.samples[:1], [6.0], [False], step=9) == (0, 1)
        assert hardnesses(each) == [4.0]


def test_the_state_of_a_version_that_did_not_count_replays_is_read():
    buffer, other = HardSampleBuffer(), HardSampleBuffer()
    buffer.push([sample(5.0)])
    state = buffer.state_dict()
    old = [{k: v for k, v in fields.items() if k != "replays"} for fields in state["samples"]]
    other.load_state_dict(state | {"version": 2, "samples": old})
    assert other.samples[0].replays == 0


def test_when_it_was_last_seen_is_saved():
    buffer, other = HardSampleBuffer(), HardSampleBuffer()
    buffer.push([sample(5.0), sample(4.0)])
    buffer.refresh(buffer.samples[:1], [1.0], [False], step=7)
    other.load_state_dict(buffer.state_dict())
    assert [(s.hardness, s.seen) for s in other.samples] == [(4.0, None), (1.0, 7)]


def test_sample_is_without_replacement_and_never_drains():
    buffer = HardSampleBuffer(capacity=10, seed=1)
    buffer.push([sample(float(h)) for h in range(10)])
    for _ in range(20):
        drawn = [s.hardness for s in buffer.sample(6)]
        assert len(drawn) == len(set(drawn)) == 6
    assert len(buffer) == 10


def test_sample_reaches_everything():
    buffer = HardSampleBuffer(capacity=10)
    buffer.push([sample(float(h)) for h in range(10)])
    seen = {s.hardness for _ in range(60) for s in buffer.sample(2)}
    assert seen == set(range(10))


def test_sample_from_a_small_buffer_gives_all_it_has():
    buffer = HardSampleBuffer()
    assert buffer.sample(4) == []
    buffer.push([sample(1.0), sample(2.0)])
    assert len(buffer.sample(4)) == 2
    with pytest.raises(ValueError, match="-1"):
        buffer.sample(-1)


def test_codes_are_small_and_come_back_as_they_were():
    buffer = HardSampleBuffer()
    small, large = torch.tensor([0, 16383, 32767]), torch.tensor([0, 1, 40000])
    latent, tokens = torch.randn(3), torch.randn(3).half()
    buffer.push([sample(4.0, compact=small), sample(3.0, compact=large)])
    buffer.push([sample(2.0, compact=latent), sample(1.0, compact=tokens)])
    stored = [s.compact for s in buffer.samples]
    assert [c.dtype for c in stored] == [torch.int16, torch.int32, torch.float32, torch.float16]
    assert torch.equal(stack_compact(buffer.samples[:1]), small[None])
    assert torch.equal(stack_compact(buffer.samples[1:2]), large[None])
    assert torch.equal(stack_compact(buffer.samples[2:3]), latent[None])
    assert stack_compact(buffer.samples[3:]).dtype == torch.float32


def test_buffer_owns_its_tensors():
    codes = torch.tensor([1, 2, 3], dtype=torch.int16)
    buffer = HardSampleBuffer()
    buffer.push([sample(1.0, compact=codes)])
    codes.zero_()
    assert buffer.samples[0].compact.tolist() == [1, 2, 3]


def test_state_round_trips_bit_exactly_through_a_weights_only_file():
    buffer = HardSampleBuffer(capacity=5, seed=7, per_source=2)
    buffer.push([sample(0.1 + h / 3, source=f"s{h % 3}", step=h) for h in range(8)])
    buffer.sample(2)  # move the generator
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other = HardSampleBuffer(capacity=5, seed=0, per_source=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other) == len(buffer) == 5
    for ours, theirs in zip(buffer.samples, other.samples, strict=True):
        assert torch.equal(ours.compact, theirs.compact)
        assert ours.compact.dtype == theirs.compact.dtype
        assert (ours.hardness, ours.source, ours.step) == (
            theirs.hardness,
            theirs.source,
            theirs.step,
        )
    for _ in range(5):
        assert [s.step for s in buffer.sample(3)] == [s.step for s in other.sample(3)]


def test_loading_into_a_smaller_buffer_keeps_the_hardest():
    buffer = HardSampleBuffer(capacity=5)
    buffer.push([sample(float(h)) for h in range(5)])
    small = HardSampleBuffer(capacity=2)
    small.load_state_dict(buffer.state_dict())
    assert hardnesses(small) == [4.0, 3.0]


def test_foreign_states_are_refused():
    with pytest.raises(UserError, match="not the state"):
        HardSampleBuffer().load_state_dict({})
    state = HardSampleBuffer().state_dict() | {"version": 99}
    with pytest.raises(UserError, match="99"):
        HardSampleBuffer().load_state_dict(state)


def test_quantiles_for_logging():
    buffer = HardSampleBuffer()
    assert buffer.hardness_quantiles() == {}
    buffer.push([sample(float(h)) for h in range(5)])
    assert buffer.hardness_quantiles() == {"q00": 0, "q25": 1, "q50": 2, "q75": 3, "q100": 4}


@pytest.mark.parametrize("kwargs", [{"capacity": 0}, {"per_source": 0}])
def test_impossible_sizes_are_named(kwargs):
    with pytest.raises(UserError, match=next(iter(kwargs))):
        HardSampleBuffer(**kwargs)


def test_a_buffer_of_4096_janus_pro_pictures_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    tracemalloc.start()
    buffer = HardSampleBuffer(4096)
    for step in range(16):
        codes = torch.randint(0, 16_384, (256, 576), generator=generator)
        buffer.push(
            HardSample(codes[i], f"what is in picture {step} {i} ?", "yes", i, 0.9, f"{i}", step)
            for i in range(256)
        )
    objects, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(buffer) == 4096
    tensors = sum(sample.compact.untyped_storage().nbytes() for sample in buffer.samples)
    assert tensors == 4096 * 576 * 2
    assert objects + tensors < 10e6
