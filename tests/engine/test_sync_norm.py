"""Which batch norms ``--sync-bn`` spreads over the ranks."""

from __future__ import annotations

import pytest
from torch import nn

from fastssl.engine.sync_norm import RankBatchNorm, over_ranks
from fastssl.methods.configs import MoCoV2Config
from fastssl.methods.mocov2 import MoCoV2
from fastssl.nn.convnet import ConvNet
from fastssl.nn.split_norm import SplitBatchNorm2d


@pytest.mark.parametrize("splits, keys", [(4, SplitBatchNorm2d), (1, RankBatchNorm)])
def test_keys_keep_the_parts_of_their_batch_and_queries_are_spread(splits, keys):
    method = MoCoV2(ConvNet(), MoCoV2Config(projector_dims=(8, 4), queue_size=8, bn_splits=splits))
    over_ranks(method, None)
    for network, kind in ((method.backbone, RankBatchNorm), (method.keys, keys)):
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms and {type(norm) for norm in norms} == {kind}
