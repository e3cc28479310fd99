"""How a local aggregator mixes the frames: the paper's depth-wise convolution, and options beyond the paper.

All take (batch, frames, patches, channels) of any number of frames and give the same shape. `local_mixing` of
`ModelConfig` names them. Each option begins as a special case of the convolution. What they gain is not measured yet:
`python -m evidence` compares them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformerv2.model.config import CALIBRATION_REDUCTION, LocalMixing
from uniformerv2.model.kernels import depthwise_in_time


class TemporalConvolution(nn.Conv1d):
    """A depth-wise convolution in time of an odd number of taps (arXiv:2211.09552, section 3.2)."""

    bias: Tensor  # there always is one

    def __init__(self, channels: int, taps: int):
        super().__init__(channels, channels, taps, padding=taps // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_in_time(x, self.weight, self.bias)


class CalibratedConvolution(TemporalConvolution):
    """The convolution with weights W_t = (1 + g_t) W of each frame t; g is zero at start.

    After TAdaConv (arXiv:2110.06178, arXiv:2308.05787), which calibrates kernels in space, a factor for each channel.
    Here the kernel is depth-wise in time, where such a factor would only scale the output, so each tap has its own.
    """

    def __init__(self, channels: int, taps: int):
        super().__init__(channels, taps)
        self.calibration = Calibration(channels, taps)

    def forward(self, x: Tensor) -> Tensor:
        # the plain convolution and what calibration adds to it: nothing, to the last digit, where g is zero
        mixed = super().forward(x)
        taps, frames = self.weight.shape[-1], x.shape[1]
        # (channels, 1, taps) -> (taps, channels)
        added = (self.calibration(x) * self.weight.squeeze(1).T).to(mixed.dtype)
        padded = F.pad(x.to(mixed.dtype), (0, 0, 0, 0, taps // 2, taps // 2))
        for tap in range(taps):
            mixed = torch.addcmul(mixed, added[:, :, tap, None], padded[:, tap : tap + frames])
        return mixed


class Calibration(nn.Module):
    """g of `CalibratedConvolution`: (batch, frames, patches, channels) -> (batch, frames, taps, channels).

    From the mean over patches of the frame and of its two neighbours, and that over the clip, as in TAdaConv. Unlike
    there, the bottleneck has no BatchNorm, as its input comes from one, and its last layer no kernel in time.
    """

    def __init__(self, channels: int, taps: int):
        super().__init__()
        hidden = max(channels // CALIBRATION_REDUCTION, 1)
        self.frame = nn.Conv1d(channels, hidden, 3, padding=1)
        self.clip = nn.Linear(channels, hidden, bias=False)
        self.factors = nn.Linear(hidden, taps * channels)
        # zero at start: the plain convolution
        nn.init.zeros_(self.factors.weight)
        nn.init.zeros_(self.factors.bias)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.mean(2)  # (batch, frames, channels)
        hidden = self.frame(frames.transpose(1, 2)).transpose(1, 2) + self.clip(frames.mean(1, keepdim=True))
        return self.factors(F.relu(hidden)).unflatten(-1, (-1, x.shape[-1]))


class DifferenceConvolution(TemporalConvolution):
    """The convolution of x_t plus one of |x_t - x_(t-1)|, whose weights are zero at start.

    After the temporal differences of STM (arXiv:1908.02486) and TDN (arXiv:2012.10071). Fed as they are they would add
    nothing to a convolution over the same frames, which is linear; absolute values are large wherever a patch changes.
    Those of the first frame are zero.
    """

    def __init__(self, channels: int, taps: int):
        super().__init__(channels, taps)
        self.differences = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        # OpenVINO 2026.4 gets Tensor.diff wrong
        change = F.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 1, 0)).abs()
        return super().forward(x) + depthwise_in_time(change, self.differences, torch.zeros_like(self.bias))


class TemporalShift(nn.Module):
    """Each channel moved in time by a learned fraction of a frame, zero at start, plus a bias.

    After the learned shifts of RubiksNet (ECCV 2020); fixed ones are TSM's (arXiv:1811.08383). Between frames is the
    polynomial through all taps (Lagrange): linear interpolation has no slope at zero, from where it could not move.
    """

    def __init__(self, channels: int, taps: int):
        super().__init__()
        self.reach = taps // 2
        self.shift = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_in_time(x, self.kernel(), self.bias)

    def kernel(self) -> Tensor:
        """Weights (channels, 1, taps): channel c of frame t is that of frame t + reach · tanh(shift[c])."""
        moved, frames = self.reach * self.shift.tanh(), range(-self.reach, self.reach + 1)
        taps = []
        for frame in frames:
            weight = torch.ones_like(moved)
            for other in frames:
                if other != frame:
                    weight = weight * (moved - other) / (frame - other)
            taps.append(weight)
        return torch.stack(taps, dim=-1).unsqueeze(1)


TEMPORAL_MIXING: dict[LocalMixing, type[TemporalConvolution] | type[TemporalShift]] = {
    "convolution": TemporalConvolution,
    "calibrated": CalibratedConvolution,
    "differences": DifferenceConvolution,
    "shift": TemporalShift,
}
