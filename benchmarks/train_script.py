"""A training script as users write it: their model and loop, on as many devices as there are."""

import sys

import jax
import optax

from rnnscale import S5
from rnnscale.data import batches
from rnnscale.distributed import connect
from rnnscale.models import SequenceClassifier
from rnnscale.sharding import batch_sharding, make_mesh, sharded_init
from rnnscale.tasks import load_task
from rnnscale.training import TrainState, cross_entropy, make_train_step

connect()  # with the other processes, if there are any
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def make_model(key):
    return SequenceClassifier(
        1, 10, make_layer=lambda key: S5(32, 32, key=key), dim=32, depth=2, key=key
    )


mesh = make_mesh(data=jax.device_count())
optimiser = optax.adamw(optax.cosine_decay_schedule(4e-3, steps))
train_step = make_train_step(cross_entropy, optimiser)
task = load_task("digits")

with jax.set_mesh(mesh):
    state = sharded_init(
        lambda key: TrainState.create(make_model(key), optimiser, key), jax.random.key(0), mesh
    )
    layout = {name: batch_sharding(mesh, ndim) for name, ndim in (("inputs", 3), ("labels", 1))}
    with batches(task.train, 64, seed=0, shardings=layout) as stream:
        for step, batch in zip(range(1, steps + 1), stream, strict=False):
            state, metrics = train_step(state, batch)
            if step % 10 == 0:
                print(f"step {step}: loss {metrics['loss']:.5f}", flush=True)
