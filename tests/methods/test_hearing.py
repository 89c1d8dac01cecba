"""Methods on sounds are given waveforms; the front end is part of their call."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl.data.audio_views import AudioViews
from fastssl.data.sources import open_source
from fastssl.data.tones import TonesSource
from fastssl.engine.readout import features_fn
from fastssl.nn.hearing import FRONTS, as_image
from fastssl.nn.logmel import LogMel
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import build_method

METHODS = ("simclr", "simsiam", "amortised", "mtslvr")


def built(name="mtslvr", front="logmel"):
    run = default_run(name, "tones")
    run = replace(run, train=replace(run.train, front=front))
    source = open_source("tones", augment=run.train.augment, front=front)
    return build_method(run).eval(), source


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", METHODS)
def test_waveforms_give_the_loss_of_their_images(name, front):
    method, source = built(name, front)
    batch = source.rehearsal(4)
    assert [tuple(view.shape) for view in batch.views] == [(4, 16_000)] * 2
    images = tuple(
        source.views.clean(view).contiguous(memory_format=torch.channels_last)
        for view in batch.views
    )
    assert images[0].shape == (4, FRONTS[front].channels, 128, 32)
    assert images[0].shape[1:] == source.image_shape
    torch.manual_seed(0)
    loss, _ = method(batch.views, batch.table)
    torch.manual_seed(0)
    assert loss == method(images, batch.table)[0]
    assert not [key for key in method.state_dict() if "front" in key or "_BM" in key]


def test_the_front_end_is_in_the_compiled_graph():
    method, source = built(front="mel-magnitude-phase")
    batch, graphs = source.rehearsal(4), []

    def seen(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph.forward

    expected, _ = method(batch.views, batch.table)
    torch._dynamo.reset()
    method.compile(fullgraph=True, dynamic=False, backend=seen)
    loss, _ = method(batch.views, batch.table)
    torch.testing.assert_close(loss, expected)
    assert len(graphs) == 1 and graphs[0].count(torch.fft.rfft) == 4  # two windows of two views


def test_16_bits_do_not_reach_the_front_end():
    method, source = built(front="mel-magnitude-phase")
    view = source.rehearsal(2).views[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = as_image(method, view)
    assert torch.equal(inside, as_image(method, view)) and inside.dtype == torch.float32


def test_a_source_of_ones_own_hands_out_images_or_waveforms():
    index = np.arange(3)
    images, waveforms = (
        TonesSource(views=AudioViews(handed=what)).batch(index, seed=0, epoch=0)
        for what in ("images", "waveforms")
    )
    for image, waveform in zip(images.views, waveforms.views, strict=True):
        assert torch.equal(image, LogMel()(waveform))


def test_a_copy_and_the_monitors_hear_too():
    method, source = built()
    batch = source.rehearsal(4)
    twin = copy.deepcopy(method)
    assert twin.front is not method.front
    assert twin(batch.views, batch.table)[0] == method(batch.views, batch.table)[0]
    look = features_fn(method, device=torch.device("cpu"), precision="fp32")
    assert torch.equal(look(batch.views[0]), look(source.views.clean(batch.views[0])))


def test_an_unknown_front_end_is_refused():
    with pytest.raises(ValueError, match="--front: expected one of logmel, mel-magnitude-phase"):
        open_source("tones", front="mfcc")
