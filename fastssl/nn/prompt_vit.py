"""A ViT with one more token, made from an invariance vector (Chavhan et al. 2023, 2302.12712).

token = mean of M small networks K -> width -> width of the vector; it joins at the end, after the
position embeddings, and the class token's output is the feature. The authors' M is 256.
"""

# shapes: N batch, C channels, S side, K bits, M networks, T tokens, F features
from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer


class PromptViT(nn.Module):
    """torchvision's VisionTransformer (N, 3, S, S) -> (N, F), told an invariance vector (K,)."""

    def __init__(self, backbone: nn.Module, num_bits: int, *, num_networks: int = 256) -> None:
        super().__init__()
        if not isinstance(backbone, VisionTransformer):
            raise ValueError(
                "amortised: expected a torchvision ViT for the prompt, received "
                f"{type(backbone).__name__}"
            )
        self.net = backbone
        self.num_features = self.width = int(backbone.hidden_dim)
        self.num_bits = num_bits
        shape = (num_networks, self.width)
        self.first = nn.Parameter(torch.randn(*shape, num_bits) * (2.0 / num_bits) ** 0.5)
        self.first_bias = nn.Parameter(torch.zeros(shape))
        self.second = nn.Parameter(torch.randn(*shape, self.width) * (2.0 / self.width) ** 0.5)
        self.second_bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x_NCSS: Tensor, bits_K: Tensor | None = None) -> Tensor:
        """(N, F): the class token under one invariance vector; None: invariant to all groups."""
        if bits_K is None:
            bits_K = x_NCSS.new_ones(self.num_bits)
        x_NTF = self.net._process_input(x_NCSS)
        x_NTF = torch.cat([self.net.class_token.expand(len(x_NTF), -1, -1), x_NTF], dim=1)
        x_NTF = x_NTF + self.net.encoder.pos_embedding
        prompt_N1F = self.token(bits_K).to(x_NTF.dtype).expand(len(x_NTF), 1, -1)
        x_NTF = self.net.encoder.dropout(torch.cat([x_NTF, prompt_N1F], dim=1))
        return self.net.encoder.ln(self.net.encoder.layers(x_NTF))[:, 0]

    def token(self, bits_K: Tensor) -> Tensor:
        """(F,): the prompt of an invariance vector."""
        hidden_MF = torch.relu(self.first @ bits_K + self.first_bias)
        out_MF = (self.second @ hidden_MF[:, :, None])[:, :, 0] + self.second_bias
        return out_MF.mean(0)
