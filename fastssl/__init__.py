"""fastssl: self-supervised learning for PyTorch on compiled kernels.

``from fastssl.losses import NTXentLoss`` needs torch and numpy alone; the training commands
(``python -m fastssl.train``) need the ``[train]`` extra.
"""

__version__ = "0.1.0"
