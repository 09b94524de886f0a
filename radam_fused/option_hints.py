"""Maps the keywords of other optimizers to this package's options, for error messages.

Most unknown keywords come from code that was written for another optimizer. The TypeError for such a keyword names the
option of this package that does the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, ParamSpec

P = ParamSpec("P")

_LEAVE_OUT = "leave it out"
_DECOUPLED = "use decoupled_weight_decay=True for AdamW's decay, False for Adam's"
_STATE = "use state_dtype (torch.float32, torch.bfloat16, torch.float16 or torch.int8)"
_MASTER = 'use master_weights ("fp32", "split" or "kahan")'
_CLIP = "use max_grad_norm"
_WARM_UP = "rectification is a warm-up of its own; radam_fused.schedules has others, as torch schedulers"

HINTS: dict[str, str] = {
    # torch.optim
    "fused": f"every step is fused; {_LEAVE_OUT}",
    "amsgrad": f"there is no AMSGrad here; {_LEAVE_OUT}",
    "rho": "use betas; rho_threshold is where rectification begins",
    "momentum": "use betas, whose first is the momentum",
    "nesterov": f"there is no Nesterov momentum here; {_LEAVE_OUT}",
    # apex, TransformerEngine, DeepSpeed
    "adam_w_mode": _DECOUPLED,
    "adamw_mode": _DECOUPLED,
    "bias_correction": f"the bias is always corrected; {_LEAVE_OUT}",
    "set_grad_none": "use zero_grad(set_to_none=...), or zero_grads=True for zeros left by the step",
    "master_weight_dtype": _MASTER,
    "store_param_remainders": 'use master_weights="split"',
    "use_decoupled_grad": f"gradients may have another dtype than their parameters; {_LEAVE_OUT}",
    "exp_avg_dtype": _STATE,
    "exp_avg_sq_dtype": _STATE,
    "fp32_optimizer_states": _STATE,
    "torch_adam": f"this is the fused implementation; {_LEAVE_OUT}",
    # Transformers, fairseq, the authors' code
    "correct_bias": f"the bias is always corrected; {_LEAVE_OUT}",
    "no_deprecation_warning": _LEAVE_OUT,
    "warmup": _WARM_UP,
    "warmup_steps": _WARM_UP,
    # optimi, pytorch_optimizer, schedule_free, timm
    "decouple_wd": "use decoupled_weight_decay",
    "decouple_lr": "use decoupled_weight_decay, which multiplies the decay by lr",
    "weight_decouple": "use decoupled_weight_decay",
    "fixed_decay": "use decoupled_weight_decay, which multiplies the decay by lr",
    "kahan_sum": 'use master_weights="kahan"',
    "gradient_release": "use radam_fused.step_in_backward(optimizer)",
    "optimizer_accumulation": "use radam_fused.step_in_backward(optimizer, accumulate=...)",
    "triton": 'use backend="triton"',
    "rectify": 'use rectification ("first_order", "exact", or "none" for Adam)',
    "n_sma_threshold": "use rho_threshold",
    "n_sma_threshhold": "use rho_threshold",
    "silent_sgd_phase": "use degenerated_to_sgd, which is its opposite",
    "caution": f"there are no cautious updates here; {_LEAVE_OUT}",
    # bitsandbytes, torchao
    "optim_bits": "use state_dtype=torch.int8 for 8 bits, torch.float32 for 32",
    "is_paged": "use offload=True, which keeps the moments in the host's memory",
    "percentile_clipping": _CLIP,
    "block_wise": f"state_dtype=torch.int8 is always blockwise; {_LEAVE_OUT}",
    "block_size": f"blocks of state_dtype=torch.int8 have 256 elements; {_LEAVE_OUT}",
    "min_8bit_size": f"parameters below 4,096 elements keep float32 under state_dtype=torch.int8; {_LEAVE_OUT}",
    "bf16_stochastic_round": 'use rounding="stochastic"',
    "stochastic_rounding": 'use rounding="stochastic"',
    # other spellings of this package's options
    "learning_rate": "use lr",
    "beta": "use betas",
    "beta1": "use betas=(beta1, beta2)",
    "beta2": "use betas=(beta1, beta2)",
    "epsilon": "use eps",
    "wd": "use weight_decay",
    "max_norm": _CLIP,
    "grad_clip": _CLIP,
    "clip_grad": _CLIP,
    "clip_grad_norm": _CLIP,
    "gradient_clip_val": _CLIP,
    "cpu_offload": "use offload",
}
"""Keyword of another optimizer -> what to use instead, as the error message says it."""


def explained(init: Callable[P, None]) -> Callable[P, None]:
    """Decorates a constructor: its TypeError for an unknown keyword says what to use instead.

    The message has the keyword's entry in `HINTS`; without one, the option with the most similar name; without either,
    all options. The constructor's signature stays as it is.
    """
    known = tuple(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                hint = HINTS.get(name)
                near = get_close_matches(name, known, n=1)
                hint = hint or (f"did you mean {near[0]}?" if near else f"must be one of {', '.join(known)}")
                raise TypeError(f"{init.__qualname__}() got an unexpected keyword argument {name!r}: {hint}")
        init(*args, **kwargs)

    return checked


CHANGE_TRAINING: Mapping[str, Any] = {"amsgrad": False, "bias_correction": True}
"""Keys in the parameter groups of other optimizers that change the training, with the one value that this optimizer
supports: `radam_fused.options.check_wide` refuses a group with another value."""
