"""What the host reads back from the device: a dispatch mode sees it on a CPU too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero")
"""Operations whose result, or its shape, the host has to know at once."""


class ReadBack(TorchDispatchMode):
    """Counts the operations that wait for what the device computes: for weights and what follows from them.

    On a GPU, weights and all that follows from them are on the device, and random numbers of the host are not.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.on_device = {storage(tensor): tensor for tensor in weights}
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        used, made = (
            [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)] for values in ((args, kwargs), result)
        )
        if any(storage(tensor) in self.on_device for tensor in used):
            self.waits.update([name] if name in WAITING else [])
            # what is written to is on the device, too; tensors are kept, so that no other gets their storage
            self.on_device |= {storage(tensor): tensor for tensor in made + used * name.endswith("_")}
        return result


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
