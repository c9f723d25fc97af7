"""Checkpoints: they restore what was saved, on any mesh, and damage to a file is noticed."""

import json
import logging
import os
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxtyping import Array

from rnnscale.training import Checkpointer
from rnnscale.training._manifest import write_manifest


class Model(eqx.Module):
    weight: Array
    bias: Array
    empty: Array


def state(seed: int, width: int = 16) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    model = Model(
        jax.random.normal(keys[0], (8, width)),
        jax.random.normal(keys[1], (width,), jnp.bfloat16),
        jnp.zeros((0, 3)),
    )
    moments = (jax.tree.map(jnp.sin, model), None)
    return {"model": model, "opt_state": moments, "key": keys[2], "step": jnp.int32(seed)}


def assert_same(got, expected) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def mesh(data: int, tensor: int):
    return jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def layout(tree, over):
    def one(x):
        spec = P("tensor", "data") if x.shape == (8, 16) else P()
        return NamedSharding(over, spec)

    return jax.tree.map(one, tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1, 2 and 3, which hold the states of these seeds."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder, every=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), of=step)
    return folder


def restore(folder: Path, like=None, shardings=None) -> tuple:
    with Checkpointer(folder) as checkpoints:
        restored = checkpoints.restore(state(0) if like is None else like, shardings)
    assert restored is not None
    return restored


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_saved_state_comes_back(saved: Path):
    restored, meta = restore(saved, jax.eval_shape(lambda: state(0)))
    assert_same(restored, state(3))
    assert meta == {"of": 3}


def test_nothing_saved_is_none(tmp_path: Path):
    with Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.restore(state(0)) is None


def test_keeps_the_newest(tmp_path: Path):
    with Checkpointer(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    "name, message",
    [("every", "at least 1 step"), ("keep", "at least 1 checkpoint"), ("minutes", "positive")],
)
def test_numbers_out_of_range(tmp_path: Path, name: str, message: str):
    with pytest.raises(ValueError, match=f"{name} must be {message}, got 0"):
        Checkpointer(tmp_path, **{name: 0})


def test_due_by_steps_and_by_the_time_since_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 1000.0
    monkeypatch.setattr("rnnscale.training._checkpointer.monotonic", lambda: now)
    with Checkpointer(tmp_path, every=100, minutes=2) as checkpoints:
        due = []
        for step in range(1, 201):
            now += 5
            if checkpoints.due(step):
                due.append(step)
                checkpoints.save(step, {"x": jnp.float32(step)})
    # 24 steps are two minutes.
    assert due == [24, 48, 72, 96, 100, 124, 148, 172, 196, 200]


def test_saves_what_it_was_given_though_it_is_donated_at_once(tmp_path: Path):
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = [jnp.zeros((256, 256)) for _ in range(4)]
    with Checkpointer(tmp_path, every=5) as checkpoints:
        for step in range(1, 41):
            tree = update(tree)
            if step == 20:
                checkpoints.save(step, tree)
        restored = checkpoints.restore(tree)
    assert restored is not None
    assert all((x == 20).all() for x in restored[0])


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_restores_onto_another_mesh(tmp_path: Path, shape: tuple[int, int]):
    before = mesh(4, 2)
    placed = jax.device_put(state(7), layout(state(7), before))
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(7, placed)
    shardings = layout(placed, mesh(*shape))
    restored, _ = restore(tmp_path, placed, shardings)
    assert_same(restored, state(7))
    for x, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)


def files_of(step: int, folder: Path) -> list[str]:
    return sorted(
        str(p.relative_to(folder)) for p in (folder / str(step)).rglob("*") if p.is_file()
    )


def cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, empty, flip, os.remove])
def test_harm_to_any_file_falls_back_or_changes_nothing(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, harm
):
    """Every file of the newest checkpoint in turn. Two of Orbax's hold no numbers: harm to those
    may go unnoticed, and then the newest numbers must come back."""
    names = files_of(3, saved)
    assert len(names) > 8
    for i, name in enumerate(names):
        caplog.clear()
        folder = shutil.copytree(saved, tmp_path / str(i))
        harm(folder / name)
        restored, meta = restore(folder)
        logged = [r.message for r in caplog.records if r.name.startswith("rnnscale")]
        may_go_unnoticed = {"_CHECKPOINT_METADATA", "commit_success.txt"}
        if harm is flip:
            may_go_unnoticed.add("manifest.json")
        if Path(name).name in may_go_unnoticed:
            assert_same(restored, state(2 if logged else 3))
        else:
            assert_same(restored, state(2))
            assert meta == {"of": 2}
            assert "checkpoint 3" in logged[0] and "damaged" in logged[0]
            assert logged[-1] == "falling back to checkpoint 2"


def test_the_run_goes_on_past_a_damaged_checkpoint(folder: Path):
    cut(folder / "3" / "manifest.json")
    with Checkpointer(folder, every=1) as checkpoints:
        assert checkpoints.restore(state(0)) is not None
        checkpoints.save(3, state(30))
    assert_same(restore(folder)[0], state(30))
    assert (folder / "3.unreadable").is_dir()


def test_half_written_checkpoint_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture):
    half = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", half)
    assert_same(restore(folder)[0], state(3))
    assert "checkpoint 4" in caplog.text and "half-written" in caplog.text
    assert "falling back to checkpoint 3" in caplog.text
    assert not half.exists()


def test_killed_before_or_after_it_wrote_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a kill at these points leaves is what is on disk there."""
    folder, left = tmp_path / "checkpoints", []

    def kill() -> None:
        left.append(shutil.copytree(folder, tmp_path / str(len(left))))

    def write(unfinished: Path) -> None:
        kill()
        write_manifest(unfinished)
        kill()

    monkeypatch.setattr("rnnscale.training._checkpointer.write_manifest", write)
    with Checkpointer(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
    monkeypatch.undo()
    for i, each in enumerate(left):
        with Checkpointer(each) as checkpoints:
            restored = checkpoints.restore(state(0))
            if i < 2:
                assert restored is None
            else:
                assert restored is not None
                assert_same(restored[0], state(1))
            checkpoints.save(2, state(2))
        assert_same(restore(each)[0], state(2))


def test_no_readable_checkpoint_is_an_error(folder: Path):
    for step in ("1", "2", "3"):
        shutil.rmtree(folder / step / "state")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(steps 1, 2, 3"):
        restore(folder)


def test_another_model_is_named_and_nothing_is_touched(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    cut(folder / "3" / "manifest.json")
    with pytest.raises(ValueError) as caught:
        restore(folder, state(0, width=32))
    message = str(caught.value)
    assert "model.weight is float32[8, 16] there and float32[8, 32] here" in message
    assert "model.bias is bfloat16[16] there and bfloat16[32] here" in message
    assert len(message) < 900

    like = state(0)
    like["extra"] = {"gain": jnp.zeros(3)}
    del like["step"]
    with pytest.raises(ValueError) as caught:
        restore(folder, like)
    assert "only in the model: extra.gain" in str(caught.value)
    assert "only in the checkpoint: step" in str(caught.value)
    assert not [r for r in caplog.records if not r.name.startswith("rnnscale")]
    assert not (folder / "3.unreadable").exists()


def test_save_reports_what_made_the_one_before_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL)
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.wait()
    shutil.rmtree(tmp_path)
    tmp_path.write_text("not a folder any more")
    with pytest.raises(
        OSError, match="checkpoint 2 in .* can't be written .*no checkpoint is whole"
    ):
        checkpoints.save(2, state(2))
        checkpoints.wait()


def test_what_can_not_be_saved_is_named(tmp_path: Path):
    with Checkpointer(tmp_path / "run") as checkpointer:
        with pytest.raises(TypeError, match="arrays of JAX, and a.b is ndarray: make it one"):
            checkpointer.save(1, {"a": {"b": np.arange(3)}})
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpointer.save(1, {"a": jnp.arange(3)}, note=np.float32(3))
        checkpointer.save(1, {"a": jnp.arange(3)}, note=3)


def test_manifest_covers_the_numbers(saved: Path):
    manifest = json.loads((saved / "3" / "manifest.json").read_text())
    listed = {f"3/{name}" for name in manifest}
    unlisted = {Path(name).name for name in files_of(3, saved) if name not in listed}
    assert unlisted == {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
