"""MONAI's networks, at sizes that a federation can name, and started alike at every site."""

from typing import Any

import torch
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.classifier import Classifier
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.resnet import ResNet, ResNetBlock
from monai.networks.nets.unet import UNet

from p2pfed.training.tasks.imaging.options import ImageOptions

# Not in place: Opacus keeps each layer's input, which must not change under it.
RECTIFIER = ("relu", {"inplace": False})
DENSENET_BLOCKS = (2, 2, 2)


class ResidualBlock(ResNetBlock):  # type: ignore[misc]
    """MONAI's block, which adds its input in place: Opacus's hooks cannot follow that."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> (B, width, *spatial / stride)."""
        around = images if self.downsample is None else self.downsample(images)
        found = self.act(self.bn1(self.conv1(images)))
        rectified: torch.Tensor = self.act(self.bn2(self.conv2(found)) + around)
        return rectified


def norm_of(options: ImageOptions) -> tuple[str, dict[str, Any]]:
    """The normalisation as MONAI's layer factory takes it."""
    if options.norm == "group":
        return "group", {"num_groups": options.norm_groups}
    return options.norm, {"affine": True}


def classifier(
    network: str, widths: tuple[int, ...], options: ImageOptions, outputs: int
) -> torch.nn.Module:
    """(B, channels, *spatial_size) -> scores (B, outputs).

    :param network: ``cnn``, ``resnet`` (He et al. 2016) or ``densenet`` (Huang et al. 2017).
    :param widths: channels of each stage, of which each halves the sides.
    """
    model: torch.nn.Module
    if network == "cnn":
        model = Classifier(
            in_shape=(options.channels, *options.spatial_size),
            classes=outputs,
            channels=widths,
            strides=[2] * len(widths),
            num_res_units=0,
            act=RECTIFIER,
            norm=norm_of(options),
        )
    elif network == "resnet":
        model = ResNet(
            ResidualBlock,
            layers=[1, 1, 1, 1],
            block_inplanes=list(widths),
            spatial_dims=options.dimensions,
            n_input_channels=options.channels,
            conv1_t_size=3,
            no_max_pool=True,
            num_classes=outputs,
            act=RECTIFIER,
            norm=norm_of(options),
        )
        _norm_everywhere(model, options)
    else:
        model = DenseNet(
            spatial_dims=options.dimensions,
            in_channels=options.channels,
            out_channels=outputs,
            init_features=widths[0],
            growth_rate=widths[0] // 2,
            block_config=DENSENET_BLOCKS,
            act=RECTIFIER,
            norm=norm_of(options),
        )
    return started_alike(model)


def segmenter(
    network: str, widths: tuple[int, ...], options: ImageOptions, outputs: int
) -> torch.nn.Module:
    """(B, channels, *spatial_size) -> scores (B, outputs, *spatial_size).

    :param network: ``unet``, with residual units (Kerfoot et al. 2018), or ``basic_unet``, that
        of Ronneberger et al. (2015); of volumes as in Cicek et al. (2016).
    :param widths: channels of each level; each but the first halves the sides.
    """
    model: torch.nn.Module
    if network == "unet":
        # Its last upsampling is normalised in groups of channels, so it is not the classes' own.
        levels = UNet(
            spatial_dims=options.dimensions,
            in_channels=options.channels,
            out_channels=widths[0],
            channels=widths,
            strides=[2] * (len(widths) - 1),
            num_res_units=1,
            act=RECTIFIER,
            norm=norm_of(options),
        )
        scores = Conv[Conv.CONV, options.dimensions](widths[0], outputs, kernel_size=1)
        model = torch.nn.Sequential(levels, scores)
    else:
        model = BasicUNet(
            spatial_dims=options.dimensions,
            in_channels=options.channels,
            out_channels=outputs,
            features=(*widths, widths[0]),
            act=RECTIFIER,
            norm=norm_of(options),
        )
    return started_alike(model)


def _norm_everywhere(model: torch.nn.Module, options: ImageOptions) -> None:
    """Put the federation's norm where there is a batch norm: MONAI's ResNet hands ``norm`` and
    ``act`` on to its first layer alone (1.6.1, ``ResNet._make_layer``)."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                layer = get_norm_layer(norm_of(options), options.dimensions, child.num_features)
                setattr(module, name, layer)
            elif isinstance(child, torch.nn.ReLU):
                child.inplace = False


def started_alike(model: torch.nn.Module) -> torch.nn.Module:
    """Draw every convolution and linear layer again by torch's own, uniform rule.

    MONAI draws some from a normal distribution, whose last bits differ between processors; the
    model that a federation starts from must be the same bytes at every site.
    """
    for module in model.modules():
        # Convolutions and linear layers have it; norms do, too, and become ones and zeros.
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return model
