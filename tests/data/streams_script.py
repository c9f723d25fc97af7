"""One of several processes that load batches of packed rows, lanes and buckets in turn.

Arguments: the port of the coordinator, the number of processes, which of them this is, the folder
for what it loaded, and after these pairs of a start and a number of workers, each for one stream.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from rnnscale import data

BATCH, STEPS = 8, 3


class Joined:
    """At each index the records of several datasets, side by side."""

    def __init__(self, **datasets):
        self.datasets = datasets

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, index):
        records = {name: dataset[index] for name, dataset in self.datasets.items()}
        return {f"{a}_{b}": x for a, record in records.items() for b, x in record.items()}


def noisy(record, random):
    return {**record, "inputs": record["inputs"] + random.integers(0, 100, dtype=np.int32)}


def rows():
    lengths = np.random.RandomState(0).randint(0, 40, 50)
    tokens = [np.random.RandomState([1, i]).randint(256, size=n) for i, n in enumerate(lengths)]
    documents = data.next_token(data.SequenceArrays({"tokens": tokens}), end=0)
    packed = data.repeat(data.shuffle(data.pack(documents, 32), seed=3))
    return Joined(
        packed=data.augment(packed, noisy, seed=5),
        lane=data.lanes(documents, BATCH, 11, seed=4),
        bucket=data.bucket(documents, [8, 20, 40], BATCH, seed=6),
    )


def main():
    port, count, rank, folder, *streams = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 4 // int(count))
    if int(count) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(count), int(rank))
    mesh = Mesh(np.array(sorted(jax.devices(), key=lambda d: d.id)), ("data",))
    for number, (start, workers) in enumerate(zip(streams[::2], streams[1::2], strict=True)):
        stream = data.stream(
            rows(),
            BATCH,
            start_step=int(start),
            workers=int(workers),
            shardings=lambda name, shape: NamedSharding(mesh, P("data")),
        )
        loaded = {}
        with stream:
            for step in range(int(start), int(start) + STEPS):
                for name, array in next(stream).items():
                    for shard in array.addressable_shards:
                        first = shard.index[0].indices(BATCH)[0]
                        loaded[f"{step} {name} {first}"] = np.asarray(shard.data)
        np.savez(Path(folder) / f"{number}-{rank}.npz", **loaded)
    print("done")


if __name__ == "__main__":
    main()
