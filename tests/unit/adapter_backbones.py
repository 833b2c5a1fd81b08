"""Backbones for the tests of adapters, named in options as ``adapter_backbones:function``."""

import torch
from torch import nn


class VisionTransformer(nn.Module):
    """A ViT of transformers, made from a configuration, for grey images: (B, 1, S, S) -> (B, 1)."""

    def __init__(self, width: int, layers: int, side: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        self.vit = ViTModel(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * width,
                image_size=side,
                patch_size=7,
                num_channels=1,
            ),
            add_pooling_layer=False,
        )
        self.head = nn.Linear(width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.vit(pixel_values=images).last_hidden_state  # (B, 1 + patches, width)
        scores: torch.Tensor = self.head(found.mean(dim=1))
        return scores


def vision_transformer(width: int = 32, layers: int = 2, side: int = 28) -> nn.Module:
    return VisionTransformer(width, layers, side)


def perceptron(features: int) -> nn.Module:
    """For tables: (B, features) -> (B, 1), with a batch norm."""
    return nn.Sequential(
        nn.Linear(features, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
        nn.Linear(8, 1),
    )  # fmt: skip


def convolutions() -> nn.Module:
    """For images and signals alike: no linear layer but the head."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 7, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def not_a_module() -> int:
    return 3


def failing() -> nn.Module:
    raise OSError("no such card")
