"""Windows of one long sequence, for the tasks that predict the next byte or value."""

import numpy as np

from rnnscale.data import Record


class Windows:
    """Windows of a long sequence of inputs and of the labels of the same steps.

    Steps at the end that fill no window are dropped.

    **Arguments:**

    - `inputs`, `labels`: arrays with a leading time axis of the same size.
    - `seq_len`: steps in a window, at least 1.
    - `stride`: steps between the starts of two windows, at least 1.
    - `dtype`: dtype of the records; the arrays can be stored as a smaller one.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        seq_len: int,
        stride: int,
        dtype: np.typing.DTypeLike,
    ):
        self.inputs = inputs
        self.labels = labels
        self.seq_len = seq_len
        self.stride = stride
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return max(0, (len(self.inputs) - self.seq_len) // self.stride + 1)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} windows")
        window = slice(index * self.stride, index * self.stride + self.seq_len)
        arrays = {"inputs": self.inputs, "labels": self.labels}
        return {name: array[window].astype(self.dtype) for name, array in arrays.items()}
