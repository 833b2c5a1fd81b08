from pathlib import Path

import numpy as np
import pytest
import torch

from p2pfed.errors import ConfigurationError, TrainingError
from p2pfed.training.partition import partition, restore_unsent, unsent_state
from p2pfed.training.schema import copy_in, copy_out, prepare, schema_of
from p2pfed.training.settings import LoopSettings


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1)
    )


def test_batch_norm_stays_at_its_site_unless_told_otherwise() -> None:
    parts = partition(network(), LoopSettings())
    assert parts.local == ("1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert parts.travelling == (
        "0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias",
    )  # fmt: skip
    assert parts.trained == parts.travelling

    everything = partition(network(), LoopSettings(local_norm="none"))
    assert everything.local == ()
    assert everything.travelling[-2:] == ("1.running_mean", "1.running_var")
    assert "1.running_mean" not in everything.trained

    assert {"1.weight", "2.bias"} <= set(partition(network(), LoopSettings(local_norm="all")).local)


def test_a_head_stays_at_its_site() -> None:
    parts = partition(network(), LoopSettings(local_head=("3",)))
    assert {"3.weight", "3.bias"} <= set(parts.local)
    assert not {"3.weight", "3.bias"} & set(parts.travelling)


def test_every_head_that_is_not_there_is_named() -> None:
    settings = LoopSettings(local_head=("head", "3", "classifier"))
    with pytest.raises(ConfigurationError) as caught:
        partition(network(), settings, Path("consortium.toml"))
    text = str(caught.value)
    assert "consortium.toml" in text
    assert "task.options.local_head" in text
    assert "'head'" in text or "head" in text
    assert len(caught.value.problems) == 2


def test_what_is_frozen_never_travels_and_is_part_of_the_digest() -> None:
    model, other = network(), network()
    for one in (model, other):
        one[0].requires_grad_(False)
        one[1].requires_grad_(False)
    parts = partition(model, LoopSettings())
    assert parts.frozen == (
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
    )  # fmt: skip
    assert not set(parts.frozen) & set(parts.travelling + parts.local)
    schema = schema_of(model, parts)
    assert schema.digest == schema_of(other, parts).digest
    with torch.no_grad():
        other[0].bias[0] += 1.0
    assert schema.digest != schema_of(other, parts).digest


def test_a_model_of_which_nothing_would_travel_is_refused() -> None:
    with pytest.raises(TrainingError, match="no trained parameter of the model travels"):
        partition(torch.nn.Sequential(torch.nn.BatchNorm1d(3)), LoopSettings())


def test_integer_buffers_belong_to_no_part_and_are_put_back() -> None:
    model = network()
    parts = partition(model, LoopSettings(local_norm="none"))
    state = unsent_state(model, parts)
    assert state.keys() == {"1.num_batches_tracked"}
    model(torch.ones(4, 2))
    assert model[1].num_batches_tracked == 1
    restore_unsent(model, state)
    assert model[1].num_batches_tracked == 0


def test_only_what_state_dict_keeps_travels_and_tied_parameters_travel_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model.register_buffer("kept", torch.zeros(3, dtype=torch.float64))
    model.register_buffer("scratch", torch.zeros(4), persistent=False)
    prepare(model)
    parts = partition(model, LoopSettings())
    schema = schema_of(model, parts)
    assert schema.tensors == (("0.weight", (2, 2)), ("1.bias", (2,)), ("kept", (3,)))
    vector = np.arange(9, dtype=np.float32)
    copy_in(vector, parts.travelling_tensors(model))
    assert model[1].weight.flatten().tolist() == [0, 1, 2, 3]
    read_back = np.empty(9, np.float32)
    copy_out(parts.travelling_tensors(model), read_back)
    assert np.array_equal(read_back, vector)
    with pytest.raises(ValueError, match="8 floats for 9"):
        copy_in(vector[:8], parts.travelling_tensors(model))
