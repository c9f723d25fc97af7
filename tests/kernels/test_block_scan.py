"""`block_scan` in all implementations: numbers, derivatives, transformations, errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rnnscale_kernels
from rnnscale_kernels import Planar, block_scan

# Its results are arrays or `Planar`s as its arguments are, which its type does not say.
linear_scan: Any = rnnscale_kernels.linear_scan

every_form = pytest.mark.parametrize("implementation", ["sequential", "chunked", "associative"])


@every_form
@pytest.mark.parametrize("varying", [True, False])
def test_a_complex_scan_is_the_scan_of_its_blocks(implementation, varying, key):
    shape = (2, 13, 3)
    re, im, x, y = jax.random.normal(key, (4, *shape)) * 0.6
    if not varying:
        re, im = re[0, 0], im[0, 0]
    reset = jnp.zeros(shape[:2], bool).at[0, 4].set(True)

    @jax.jit
    def both(re, im, x, y):
        options = {"reset": reset, "implementation": implementation}

        def of_blocks(re, im, x, y):
            (h_re, h_im), last = block_scan(((re, -im), (im, re)), (x, y), **options)
            return h_re, h_im, last

        def of_numbers(re, im, x, y):
            h, last = linear_scan(Planar(re, im), Planar(x, y), **options)
            return h.re, h.im, tuple(last)

        def loss(run, *arguments):
            h_re, h_im, (last, _) = run(*arguments)
            return jnp.sum(jnp.sin(h_re) * h_im) + jnp.sum(last**2)

        every = (0, 1, 2, 3)
        return [
            (
                run(re, im, x, y),
                jax.grad(lambda *args, run=run: loss(run, *args), every)(re, im, x, y),
            )
            for run in (of_blocks, of_numbers)
        ]

    got, expected = both(re, im, x, y)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), got, expected)
