import pytest
import torch
from known_networks import drawn, seeded
from torch import nn
from torch.nn import functional

from nnseg.errors import PlanError
from nnseg.model.architecture import Architecture
from nnseg.model.blocks import InstanceNorm
from nnseg.networks.layers import (
    LEAKY_RELU,
    ConvNormAct,
    make_dropout,
    make_norm,
    make_pooling,
    per_axis,
)


def test_a_block_is_convolution_norm_and_relu_and_keeps_the_size_but_for_its_stride() -> None:
    block, x = (
        seeded(ConvNormAct, 2, 3, (1, 3, 5), (1, 2, 1), norm="instance"),
        drawn(2, 2, 4, 6, 5),
    )
    convolved = functional.conv3d(
        x, block.conv.weight, block.conv.bias, stride=(1, 2, 1), padding=(0, 1, 2)
    )
    torch.testing.assert_close(block(x), functional.instance_norm(convolved).relu())
    assert block(x).shape == (2, 3, 4, 3, 5)


def test_a_block_with_batch_norm_normalizes_over_the_batch_while_it_learns() -> None:
    block, x = (
        seeded(ConvNormAct, 2, 3, (3, 5), norm="batch", activation=LEAKY_RELU),
        drawn(2, 2, 6, 5),
    )
    convolved = functional.conv2d(x, block.conv.weight, block.conv.bias, padding=(1, 2))
    normed = functional.batch_norm(convolved, torch.zeros(3), torch.ones(3), training=True)
    torch.testing.assert_close(block(x), functional.leaky_relu(normed, 0.01))


def test_a_block_has_the_members_that_it_is_asked_for() -> None:
    whole = seeded(ConvNormAct, 2, 3, (3, 3), norm="batch", dropout=0.25)
    assert [name for name, _ in whole.named_children()] == ["conv", "norm", "activation", "dropout"]
    bare = seeded(ConvNormAct, 2, 3, (3, 3), norm=None, activation=None, bias=False)
    assert [name for name, _ in bare.named_parameters()] == ["conv.weight"]


def test_the_gradient_of_a_block_is_that_of_its_parts_not_in_place() -> None:
    block, x = (
        seeded(ConvNormAct, 2, 3, (3, 3), norm="instance").double(),
        drawn(1, 2, 4, 5).double(),
    )
    assert torch.autograd.gradcheck(block, (x.requires_grad_(),))


def test_dropout_is_of_whole_maps_and_only_while_learning() -> None:
    dropout, x = make_dropout(0.5, 3), torch.ones(4, 8, 2, 3, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maps = dropout(x).flatten(2)
    assert torch.equal(maps.amin(dim=2), maps.amax(dim=2))
    assert set(maps.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropout.eval()(x), x)
    assert isinstance(make_dropout(0.0, 2), nn.Identity)


def test_the_norms_are_ours_of_the_instance_and_torchs_of_the_batch() -> None:
    instance = make_norm("instance", 3, 3)
    assert isinstance(instance, InstanceNorm)
    assert not instance.activated
    assert isinstance(make_norm("batch", 3, 2), nn.BatchNorm2d)
    assert isinstance(make_norm("batch", 3, 3), nn.BatchNorm3d)
    with pytest.raises(PlanError, match="'layer'; known: batch, instance"):
        make_norm("layer", 3, 2)


def test_pooling_takes_the_largest_of_each_box_of_the_stride() -> None:
    x = torch.arange(48.0).reshape(1, 1, 2, 4, 6)
    pooled = make_pooling((1, 2, 3))(x)
    assert pooled.tolist() == [[[[[8, 11], [20, 23]], [[32, 35], [44, 47]]]]]
    assert torch.equal(make_pooling((1, 1))(x), x)


def test_kernels_and_strides_of_a_2d_network_leave_out_the_axis_of_the_slices() -> None:
    flat = Architecture(
        network="unet",
        dimensions=2,
        features=(4, 8),
        kernel_sizes=((1, 3, 5), (1, 5, 3)),
        strides=((1, 1, 1), (1, 2, 1)),
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
    )
    assert per_axis(flat) == ([(3, 5), (5, 3)], [(1, 1), (2, 1)])
