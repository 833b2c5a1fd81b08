"""How much smaller an adapter's delta is than its backbone's would be.

    python benchmarks/adapter_size.py [--width 768] [--layers 12] [--rank 8]

Builds a vision transformer (Dosovitskiy et al. 2021; by default the size of ViT-B/16) of random
weights through transformers, nothing is downloaded; adapts it by the task ``adapter``; and counts
the numbers that travel by the schema that a federation would use, and the bytes of one delta.
"""

import argparse

import torch
from torch import nn

from p2pfed.protocol.codecs import get_codec
from p2pfed.training.loop import genesis_model
from p2pfed.training.partition import partition
from p2pfed.training.schema import prepare, schema_of
from p2pfed.training.tasks.adapter.task import Adapter

SIDE, PATCH, CHANNELS = 224, 16, 3


class Classifier(nn.Module):
    """Images (B, 3, 224, 224) -> log-odds (B, 1), from the first token."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel  # noqa: PLC0415 - seconds, and not for all

        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            image_size=SIDE,
            patch_size=PATCH,
            num_channels=CHANNELS,
        )
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.vit(pixel_values=images).last_hidden_state[:, 0])
        return scores


def vision_transformer(width: int, layers: int) -> nn.Module:
    return Classifier(width, layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", type=int, default=8)
    arguments = parser.parse_args()
    task = Adapter(
        {
            "base": "adapter_size:vision_transformer",
            "base_options": {"width": arguments.width, "layers": arguments.layers},
            "rank": arguments.rank,
            "target_modules": ["q_proj", "v_proj"],
            "head": ["head"],
            "of": "image_classification",
            "of_options": {
                "classes": ["well", "ill"],
                "spatial_size": [SIDE, SIDE],
                "channels": CHANNELS,
                "intensity": {"kind": "range", "low": 0.0, "high": 255.0},
            },
        },
        {"path": "none"},
    )
    model = genesis_model(task, seed=0)
    prepare(model)
    parts = partition(model, task.options)
    foreign = [name for name in parts.travelling if "lora_" not in name and ".head." not in name]
    assert not foreign, foreign
    travelling = schema_of(model, parts).dimension
    frozen = sum(tensor.numel() for tensor in parts.frozen_tensors(model))
    print(f"backbone, frozen: {frozen} numbers")
    print(f"adapters and head, travelling: {travelling} numbers, 1 for {frozen / travelling:.0f}")
    for name in ("int8", "float32"):
        codec = get_codec(name)
        delta, whole = codec.payload_bytes(travelling), codec.payload_bytes(frozen + travelling)
        print(f"delta, {name}: {delta / 1e6:.2f} MB; of the whole model: {whole / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
