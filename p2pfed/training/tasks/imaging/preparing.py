"""From the pixels of a file to those that a network sees: MONAI's transforms, alike everywhere."""

import numpy as np
import torch
from monai.transforms.croppad.array import ResizeWithPadOrCrop
from monai.transforms.intensity.array import NormalizeIntensity, ScaleIntensityRange
from monai.transforms.spatial.array import Resize
from numpy.typing import NDArray

from p2pfed.training.tasks.imaging.options import ImageOptions
from p2pfed.training.tasks.imaging.reading import Pixels

DARKEST = -1.0  # of the scaled intensities


class Preparation:
    """Scales intensities and brings an image, or a mask, to the federation's size."""

    def __init__(self, options: ImageOptions) -> None:
        self.size = options.spatial_size
        intensity = options.intensity
        if intensity.kind == "record":
            self._scale = NormalizeIntensity(channel_wise=True)
        else:
            low, high = intensity.ends
            self._scale = ScaleIntensityRange(low, high, b_min=DARKEST, b_max=1.0, clip=True)
        if options.fit == "stretch":
            linear = "bilinear" if options.dimensions == 2 else "trilinear"
            self._fit_image = Resize(self.size, mode=linear, anti_aliasing=True)
            self._fit_mask = Resize(self.size, mode="nearest-exact")
        else:
            value = 0.0 if intensity.kind == "record" else DARKEST
            self._fit_image = ResizeWithPadOrCrop(self.size, mode="constant", value=value)
            self._fit_mask = ResizeWithPadOrCrop(self.size, mode="constant", value=0)

    def image(self, pixels: Pixels) -> torch.Tensor:
        """(C, *any) -> (C, *spatial_size), float32."""
        scaled = self._scale(torch.from_numpy(pixels))
        if tuple(scaled.shape[1:]) != self.size:
            scaled = self._fit_image(scaled)
        return _plain(scaled, torch.float32)

    def mask(self, classes: NDArray[np.uint8]) -> torch.Tensor:
        """(1, *any) -> (1, *spatial_size), uint8; the nearest pixel's class, none is blended."""
        mask = torch.from_numpy(classes)
        if tuple(mask.shape[1:]) != self.size:
            mask = self._fit_mask(mask.float())
        return _plain(mask, torch.uint8)


def _plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Without the metadata that MONAI's tensors carry along."""
    return tensor.as_subclass(torch.Tensor).to(dtype).contiguous()
