"""Trains on all devices, resumes where it stopped: python train_script.py FOLDER STEPS SEQ"""

import sys

import equinox as eqx
import jax
import optax

from rnnscale import S5, data, distributed, layers, sharding, tasks, training


class Model(eqx.Module):
    layer: S5
    readout: layers.Linear

    def __init__(self, key):
        self.layer, self.readout = S5(1, 64, 64, key=key), layers.Linear(64, 10, key=key)

    def __call__(self, xs):
        state, hs = self.layer(xs)
        return self.readout(jax.nn.gelu(hs[:, -1]))


def loss(model, batch):  # of each row
    logits = model(batch["inputs"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


distributed.connect()  # with the other processes, if there are any
folder, steps, seq = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mesh = sharding.make_mesh(data=jax.device_count() // seq, seq=seq)  # time over seq devices
axes = {"inputs": 3, "labels": 1, "weight": 1}
layout = {name: sharding.batch_sharding(mesh, ndim) for name, ndim in axes.items()}
task, optimiser = tasks.load_task("digits"), optax.adam(optax.cosine_decay_schedule(1e-2, steps))
train_step, eval_step = training.make_train_step(loss, optimiser), training.make_eval_step(loss)
create, key = training.TrainState.create, jax.random.key(0)
with jax.set_mesh(mesh), training.Checkpointer(folder, every=20) as saved:
    state = sharding.sharded_init(lambda key: create(Model(key), optimiser, key), key, mesh)
    state, _ = saved.restore(state, sharding.shardings(state, mesh)) or (state, None)
    callbacks, done = [training.Log(print), training.Checkpoints(saved)], int(state.step)
    with data.batches(task.train, 64, seed=0, start_step=done, shardings=layout) as batches:
        state = training.fit(state, train_step, batches, steps=steps, callbacks=callbacks)
    with data.evaluation_batches(task.test, 64, shardings=layout) as batches:
        print(training.evaluate(eval_step, state.model, batches))
