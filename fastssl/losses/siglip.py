"""SigLIP's sigmoid loss over all pairs (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    x_ij = scale * u_i . v_j + bias,    y_ij = 1 on the diagonal, -1 elsewhere
    loss = -1/N sum_ij log sigmoid(y_ij x_ij)

Blocks of rows: loss and all gradients come out of one pass and no N x N matrix is kept.
"""

# shapes: N pairs, D features, B rows of a block
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Logits held at a time: 4 MB in float32, about what stays in the cache between the passes over it.
BLOCK_LOGITS = 1 << 20


class SigLIPLoss(nn.Module):
    """Sigmoid loss between images and texts with a learnt scale and bias.

    Args:
        scale: initial scale; the parameter ``log_scale`` holds its logarithm, as in the paper.
        bias: initial value of the parameter ``bias``.

    Example:
        >>> import torch
        >>> from fastssl.losses import SigLIPLoss
        >>> image, text = torch.randn(2, 256, 128, requires_grad=True)
        >>> SigLIPLoss()(image, text).backward()
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"SigLIPLoss: scale must be finite and positive; received {scale}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, image_ND: Tensor, text_ND: Tensor) -> Tensor:
        """Loss, (), of (N, D) raw embeddings; row i of one belongs to row i of the other."""
        return siglip_loss(image_ND, text_ND, self.log_scale.exp(), self.bias)


def siglip_loss(
    image: Tensor, text: Tensor, scale: float | Tensor = 10.0, bias: float | Tensor = -10.0
) -> Tensor:
    """Sigmoid loss of raw embeddings: the L2 normalisation happens inside.

    Args:
        image, text: (N, D) of any float dtype; row i of one belongs to row i of the other.
        scale, bias: floats, or one-element tensors to get their gradients.

    Returns:
        () in float32 (float64 for float64 input). A second derivative materialises N x N.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    _check(image, text)
    image, text = (F.normalize(_widened(side), dim=1) for side in (image, text))
    return pairwise_sigmoid(image, text, scale, bias)


def pairwise_sigmoid(
    image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor
) -> Tensor:
    """``siglip_loss`` of embeddings that are taken as they are (normalise before)."""
    _check(image, text)
    scale, bias = _scalar("scale", scale, image), _scalar("bias", bias, image)
    inputs = (image, text, scale, bias)
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return _PairwiseSigmoid.apply(*inputs, differentiable)


class _PairwiseSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, text, scale, bias, differentiable):
        with torch.autocast(image.device.type, enabled=False):
            wide = _in_one_dtype(image, text, scale, bias)
            if not differentiable:
                return _loss(*wide)
            loss, *grads = _loss_and_gradients(*wide)
        ctx.save_for_backward(image, text, scale, bias, *grads)
        return loss

    @staticmethod
    def backward(ctx, grad):
        inputs, grads = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for
            return *_differentiable(grad, inputs), None
        pairs = zip(inputs, grads, ctx.needs_input_grad, strict=False)
        return *[(grad * g).to(x.dtype) if wanted else None for x, g, wanted in pairs], None


def _differentiable(grad: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the formula over one block of all rows, kept differentiable."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        wide = _in_one_dtype(*inputs)
        signed_NN = _signed_logits(*wide, 0, len(inputs[0]))
        loss = -F.logsigmoid(-signed_NN).sum() / len(inputs[0])
    asked = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(loss, asked, grad, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _in_one_dtype(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """float32, or float64 as soon as one side is."""
    dtype = torch.promote_types(_widened(image).dtype, text.dtype)
    return image.to(dtype), text.to(dtype), scale.to(dtype), bias.to(dtype)


def _blocks(num_rows: int):
    """(start, stop) of row blocks of about BLOCK_LOGITS logits."""
    step = max(1, BLOCK_LOGITS // num_rows)
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def _signed_logits(
    image_ND: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor, start: int, stop: int
) -> Tensor:
    """-y_ij x_ij of a block of rows, (B, N): the pairs' own logits change sign."""
    signed_BN = image_ND[start:stop] @ text_ND.T * scale + bias
    signed_BN.diagonal(start).neg_()
    return signed_BN


def _loss(image_ND: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    sums = [
        F.logsigmoid(-_signed_logits(image_ND, text_ND, scale, bias, *block)).sum()
        for block in _blocks(len(image_ND))
    ]
    return -torch.stack(sums).sum() / len(image_ND)


def _loss_and_gradients(
    image_ND: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients with respect to image, text, scale and bias.

    W_ij = -y_ij sigmoid(-y_ij x_ij) / N;  dimage = scale W text,  dtext = scale W^T image,
    dscale = sum_ij W_ij u_i . v_j,  dbias = sum_ij W_ij.
    """
    num_pairs = len(image_ND)
    dimage_ND, dtext_ND = torch.zeros_like(image_ND), torch.zeros_like(text_ND)
    sums, dbias = [], []
    for start, stop in _blocks(num_pairs):
        w_BN = _signed_logits(image_ND, text_ND, scale, bias, start, stop)
        sums.append(F.logsigmoid(-w_BN).sum())
        w_BN.sigmoid_().div_(num_pairs)
        w_BN.diagonal(start).neg_()
        dbias.append(w_BN.sum())
        dimage_ND[start:stop] = w_BN @ text_ND
        dtext_ND.addmm_(w_BN.T, image_ND[start:stop])
    dscale = (dimage_ND * image_ND).sum()
    loss = -torch.stack(sums).sum() / num_pairs
    return loss, dimage_ND * scale, dtext_ND * scale, dscale, torch.stack(dbias).sum()


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _scalar(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A 0-d tensor of the value; gradients flow back to a tensor of any one-element shape."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise _bad(name, "one floating number", f"{value.dtype} {tuple(value.shape)}")
        if value.device != like.device:
            raise _bad(name, f"on {like.device} like the images", value.device)
        return value.reshape(())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(name, "a float or a one-element tensor", type(value).__name__)
    return torch.full((), value, dtype=torch.float64, device=like.device)


def _check(image: Tensor, text: Tensor) -> None:
    for name, rows in (("image", image), ("text", text)):
        if not isinstance(rows, Tensor):
            raise _bad(name, "a tensor of shape (N, D)", type(rows).__name__)
        if rows.dim() != 2 or rows.numel() == 0:
            raise _bad(name, "2-D and non-empty, (N, D)", f"shape {tuple(rows.shape)}")
        if not rows.dtype.is_floating_point:
            raise _bad(name, "of a floating dtype", rows.dtype)
    if text.shape != image.shape:
        raise _bad("text", f"of shape {tuple(image.shape)} like image", tuple(text.shape))
    if text.device != image.device:
        raise _bad("text", f"on {image.device} like image", text.device)


def _bad(argument: str, expected: str, received: object) -> ValueError:
    return ValueError(f"siglip_loss: {argument} must be {expected}; received {received}")
