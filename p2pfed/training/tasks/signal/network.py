"""A small residual network over time, after Hannun et al. (2019) and He et al. (2016)."""

from collections.abc import Sequence

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two convolutions and a way around them; group norm, which looks at one record at a time.

    (B, channels, T) -> (B, width, ceil(T / stride)).
    """

    def __init__(self, channels: int, width: int, stride: int, kernel: int, groups: int) -> None:
        super().__init__()
        padding = kernel // 2
        self.body = nn.Sequential(
            nn.Conv1d(channels, width, kernel, stride, padding, bias=False),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
            nn.Conv1d(width, width, kernel, 1, padding, bias=False),
            nn.GroupNorm(groups, width),
        )
        alike = channels == width and stride == 1
        self.shortcut = nn.Identity() if alike else nn.Conv1d(channels, width, 1, stride)
        self.rectifier = nn.ReLU()

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        rectified: torch.Tensor = self.rectifier(self.body(signal) + self.shortcut(signal))
        return rectified


class SignalResNet(nn.Module):
    """Records (B, leads, samples) -> scores (B, outputs).

    :param widths: channels of each block; each but the first halves the samples.
    """

    def __init__(
        self, leads: int, widths: Sequence[int], outputs: int, *, kernel: int, groups: int
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(leads, widths[0], kernel, 2, kernel // 2, bias=False),
            nn.GroupNorm(groups, widths[0]),
            nn.ReLU(),
        )
        blocks = []
        channels = widths[0]
        for number, width in enumerate(widths):
            blocks.append(ResidualBlock(channels, width, 2 if number else 1, kernel, groups))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        # What is somewhere in the record, and how much of it there is.
        self.head = nn.Linear(2 * channels, outputs)

    def forward(self, records: torch.Tensor) -> torch.Tensor:
        found = self.blocks(self.stem(records))  # (B, channels, T)
        pooled = torch.cat([found.amax(dim=2), found.mean(dim=2)], dim=1)  # (B, 2 channels)
        scores: torch.Tensor = self.head(pooled)
        return scores
