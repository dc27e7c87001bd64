"""Reading shard by shard: whose rows are whose, every row once, exactly resumed, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from tests.data.files import png, write_tar
from tests.training.helpers import Losses, Records, lora_weights, make_config, make_trainer
from unigame.data import Mixture, WebDataset
from unigame.data.pictures import TarSlice
from unigame.errors import UserError
from unigame.training.identity import differences
from unigame.training.shard_order import AT_ONCE, ShardOrder


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 tars of 6 pictures each."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(16):
        members: dict[str, Any] = {}
        for row in range(6):
            members[f"{row}.png"] = png((shard * 15, row * 40, 0), size=(16, 16))
            members[f"{row}.json"] = '{"question": "what colour is it", "answer": "red"}'
        write_tar(folder / f"{shard:02d}.tar", members)
    return folder


def of_processes(order: ShardOrder) -> list[list[list[int]]]:
    """The batches of each process, as accelerate deals them out."""
    batches = BatchSampler(order, order.batch, drop_last=False)
    count = order.processes
    return [
        list(BatchSamplerShard(batches, count, rank, even_batches=False)) for rank in range(count)
    ]


def shards_of(data: WebDataset, indices: list[int]) -> list[str]:
    cells = [data._rows[index].image for index in indices]
    assert all(isinstance(cell, TarSlice) for cell in cells)
    return [Path(cell.shard).stem for cell in cells]


def test_each_process_reads_its_own_shards_few_at_a_time_and_every_row_comes_once(tars) -> None:
    data = WebDataset(tars)
    order = ShardOrder(data, processes=2, batch=4, seed=3)
    seen = []
    for epoch in range(2):
        order.set_epoch(epoch)
        dealt = [sum(batches, []) for batches in of_processes(order)]
        assert sorted(sum(dealt, [])) == list(range(96))
        for rank, indices in enumerate(dealt):
            read = shards_of(data, indices)
            assert set(read) == {f"{shard:02d}" for shard in range(8 * rank, 8 * rank + 8)}
            assert len(set(read[: 6 * AT_ONCE])) == AT_ONCE
            assert indices != sorted(indices)
        seen.append(dealt)
    assert seen[0] != seen[1]
    again = ShardOrder(WebDataset(tars), processes=2, batch=4, seed=3)
    assert [sum(batches, []) for batches in of_processes(again)] == seen[0]
    assert not order.faults()


def test_uneven_shards_leave_all_processes_with_equally_many_rows(tars) -> None:
    data = WebDataset(sorted(tars.iterdir())[:5])  # 30 rows for 4 processes
    order = ShardOrder(data, processes=4, batch=2, seed=0)
    dealt = of_processes(order)
    assert sorted(sum(sum(dealt, []), [])) == list(range(30))
    assert {len(batches[0]) for batches in dealt} == {2} and {len(b) for b in dealt} <= {3, 4}
    few = ShardOrder(WebDataset(sorted(tars.iterdir())[:2]), processes=4, batch=2, seed=0)
    assert sorted(few) == list(range(12))
    assert "2 shards for 4 processes" in few.faults()[0]
    assert list(ShardOrder(Records(1), processes=4, batch=2, seed=0)) == [0]


def test_sources_of_a_mixture_are_mixed_on_every_process(tars) -> None:
    data = Mixture([WebDataset(tars), Records(48)], [2, 1], size=72)
    data.set_epoch(1)
    order = ShardOrder(data, processes=2, batch=6, seed=0)
    dealt = [sum(batches, []) for batches in of_processes(order)]
    assert sorted(sum(dealt, [])) == list(range(72))
    for indices in dealt:
        places = [data.locate(index) for index in indices[:36]]
        own = {int(row) // 6 for source, row in places if source == 0}
        assert len(own) <= 10  # of 16: the cut is where half of the rows of this epoch lie
        assert 16 <= sum(source == 0 for source, _ in places) <= 32
    assert "source" in ShardOrder(Records(4), 2, 1, 0).faults()[0]


def test_blocks_of_a_table_are_shards(tmp_path, monkeypatch) -> None:
    import datasets

    from unigame.data import HFData

    monkeypatch.setattr("unigame.data.shards.BLOCK", 3)
    rows = [{"image": {"bytes": png(), "path": None}, "caption": str(i)} for i in range(12)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    (source,) = HFData(tmp_path / "saved").sources()
    assert source.shards_N.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_run_goes_on_exactly_and_with_equally_many_processes_only(
    tars, tiny_path, tmp_path, monkeypatch
) -> None:
    data, settings = WebDataset(tars, limit=10), {"reading_order": "shards"}
    settings |= {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(
        tiny_path, tmp_path / "whole", data, max_steps=7, methods=["sft"], **settings
    )
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-6")  # within the second epoch
    again = make_trainer(
        tiny_path, tmp_path / "again", data, max_steps=7, methods=["sft"], **settings
    )
    again.train(resume_from_checkpoint=checkpoint)
    assert Losses(again.state.log_history).values == Losses(whole.state.log_history).values
    for name, weight in lora_weights(whole).items():
        assert torch.equal(weight, lora_weights(again)[name]), name
    rows = make_config(tmp_path, **{**settings, "reading_order": "rows"}, max_steps=7)
    assert "reading_order: shards there, rows here" in differences(checkpoint, rows, None)
    args = make_config(tmp_path, **settings, max_steps=7)
    monkeypatch.setattr("unigame.training.identity.saved_by", lambda folder: 2)
    assert "processes: 2 there, 1 here" in " ".join(differences(checkpoint, args, None))


@pytest.mark.parametrize(
    "other",
    [
        {"train_sampling_strategy": "sequential"},
        {"accelerator_config": {"split_batches": True}},
    ],
)
def test_two_that_say_the_order_are_refused(tmp_path, other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"reading_order='shards' with .*{[*other][0][:11]}"):
        make_config(tmp_path, reading_order="shards", **other)
