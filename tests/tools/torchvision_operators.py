"""Defines two operators that torchvision expects of its own library, which does not load beside a CPU build of torch.

timm imports torchvision, and the registry has its CUDA wheel. The wheel's library needs CUDA's libraries; without it
torchvision's import fails, as it registers shape functions of these two. No test calls them.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
if not torch.cuda.is_available():
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
