"""One of four processes that load the same streams, for `test_streams.py`.

It is a file of its own, because the tests start it as a program. Arguments: the port of the
coordinator, the rank of this process, the folder for the loaded arrays, and then for each stream
its first step and its number of workers.
"""

import sys
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from rnnscale import data

PROCESSES, BATCH, STEPS = 4, 8, 3


class Joined:
    """At each index the records of several datasets, joined to one record."""

    def __init__(self, **datasets: grain.MapDataset):
        self.datasets = datasets

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> data.Record:
        joined = {}
        for name, dataset in self.datasets.items():
            record = dataset[index]
            assert record is not None
            joined |= {f"{name}_{array}": values for array, values in record.items()}
        return joined


def noisy(record: data.Record, random: np.random.Generator) -> data.Record:
    return {**record, "inputs": record["inputs"] + random.integers(0, 100, dtype=np.int32)}


def rows() -> Joined:
    """Packed rows with random changes, lanes and buckets."""
    lengths = np.random.RandomState(0).randint(0, 40, 50)
    tokens = [np.random.RandomState([1, i]).randint(256, size=n) for i, n in enumerate(lengths)]
    documents = data.next_token(data.SequenceArrays({"tokens": tokens}), end=0)
    packed = data.repeat(data.shuffle(data.pack(documents, 32), seed=3))
    return Joined(
        packed=data.augment(packed, noisy, seed=5),
        lane=data.lanes(documents, BATCH, 11, seed=4),
        bucket=data.bucket(documents, [8, 20, 40], BATCH, seed=6),
    )


def save_streams(rank: int, folder: Path, streams: list[tuple[int, int]]) -> None:
    """Saves the rows that this process loads for the first steps of each stream."""
    mesh = Mesh(np.array(sorted(jax.devices(), key=lambda d: d.id)), ("data",))
    sharding = NamedSharding(mesh, P("data"))
    for number, (start, workers) in enumerate(streams):
        stream = data.stream(
            rows(), BATCH, start_step=start, workers=workers, shardings=lambda *_: sharding
        )
        loaded = {}
        with stream:
            for step in range(start, start + STEPS):
                for name, array in next(stream).items():
                    for shard in array.addressable_shards:
                        first = shard.index[0].indices(BATCH)[0]
                        loaded[f"{step} {name} {first}"] = np.asarray(shard.data)
        np.savez(folder / f"{number}-{rank}.npz", **loaded)


class Counting:
    """Records that count how many of them have been read."""

    def __init__(self):
        self.reads = 0

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> data.Record:
        self.reads += 1
        values = index * 100 + np.arange(8, dtype=np.float32)
        return {"inputs": values, "labels": np.asarray(index)}


def check_reads() -> None:
    """A process reads only the rows that its two devices need, on meshes of different shapes."""
    devices = np.array(sorted(jax.devices(), key=lambda d: d.id))
    alternating = devices.reshape(2, 4).T.reshape(8)
    # The last column is the number of rows that a process needs of each batch of 16.
    for order, shape, spec, count in [
        (devices, (8, 1), P("data", "seq"), 4),
        (devices, (2, 4), P("data", "seq"), 8),
        (devices, (1, 8), P("data", "seq"), 16),
        (devices, (4, 2), P("seq", "data"), 16),
        (devices, (8, 1), P(), 16),
        (alternating, (8, 1), P("data"), 6),
    ]:
        mesh = Mesh(order.reshape(shape), ("data", "seq"))
        shardings = {
            "inputs": NamedSharding(mesh, spec),
            "labels": NamedSharding(mesh, P(*spec[:1])),
        }
        source = Counting()
        stream = data.batches(source, 16, seed=4, shardings=shardings)
        with stream, data.batches(Counting(), 16, seed=4) as plain:
            for _ in range(3):
                batch, expected = next(stream), next(plain)
                for name in expected:
                    assert batch[name].shape == expected[name].shape
                    for shard in batch[name].addressable_shards:
                        rows = np.asarray(expected[name])[shard.index]
                        np.testing.assert_array_equal(shard.data, rows)
        reads = source.reads - 1  # one more for the shapes
        assert reads % count == 0 and reads <= 6 * count, reads


def main() -> None:
    port, rank, folder, *streams = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, int(rank))
    numbers = list(map(int, streams))
    save_streams(int(rank), Path(folder), list(zip(numbers[::2], numbers[1::2], strict=True)))
    check_reads()
    print("done")


if __name__ == "__main__":
    main()
