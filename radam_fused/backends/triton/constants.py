"""Constants of the kernels: columns of the tables that they read, by name, and what the numeric contract fixes.

Each is made from the list or the number that the rest of the package uses. Only kernels import this module, since
Triton need not be installed.
"""

from __future__ import annotations

import triton.language as tl

from ... import rectification
from ...numerics import layout, philox, quantization, scalars
from ...numerics.scalars import GroupScalars, StepScalars
from .tables import NORM_COLUMNS, SEGMENT_COLUMNS

UNRECTIFIED = tl.constexpr(scalars.UNRECTIFIED)
RECTIFIED = tl.constexpr(scalars.RECTIFIED)
NO_PARAM_UPDATE = tl.constexpr(scalars.NO_PARAM_UPDATE)
SKIP_STEP = tl.constexpr(scalars.SKIP_STEP)

# Of the segment table of a step.
PARAM_ADDRESS, GRAD_ADDRESS, START, LENGTH, SCALAR_INDEX, FIRST_TILE, ALIGNED, STRIDES_AT, RNG_OFFSET = map(
    tl.constexpr, range(len(SEGMENT_COLUMNS))
)
SEGMENT_WIDTH = tl.constexpr(len(SEGMENT_COLUMNS))

# Of the segment table of a norm.
NORM_ADDRESS, NORM_LENGTH, NORM_FIRST_TILE, NORM_TILES, NORM_FULL_TILES, NORM_STRIDES_AT = map(
    tl.constexpr, range(len(NORM_COLUMNS))
)
NORM_WIDTH = tl.constexpr(len(NORM_COLUMNS))

# Of the scalars of a step.
S_ONE_MINUS_BETA1 = tl.constexpr(StepScalars._fields.index("one_minus_beta1"))
S_BETA2 = tl.constexpr(StepScalars._fields.index("beta2"))
S_ONE_MINUS_BETA2 = tl.constexpr(StepScalars._fields.index("one_minus_beta2"))
S_EPS = tl.constexpr(StepScalars._fields.index("eps"))
S_L2_DECAY = tl.constexpr(StepScalars._fields.index("l2_decay"))
S_DECAY_FACTOR = tl.constexpr(StepScalars._fields.index("decay_factor"))
S_STEP_SIZE = tl.constexpr(StepScalars._fields.index("step_size"))
S_GRAD_SCALE_FACTOR = tl.constexpr(StepScalars._fields.index("grad_scale_factor"))
S_UPDATE_RULE = tl.constexpr(StepScalars._fields.index("update_rule"))
S_STEP = tl.constexpr(StepScalars._fields.index("step"))
S_SEED = tl.constexpr(StepScalars._fields.index("seed"))
S_WIDTH = tl.constexpr(len(StepScalars._fields))

# Of the scalars of a parameter group.
G_LR = tl.constexpr(GroupScalars._fields.index("lr"))
G_ONE_MINUS_BETA1 = tl.constexpr(GroupScalars._fields.index("one_minus_beta1"))
G_DECAY_RATE1 = tl.constexpr(GroupScalars._fields.index("decay_rate1"))
G_BETA2 = tl.constexpr(GroupScalars._fields.index("beta2"))
G_ONE_MINUS_BETA2 = tl.constexpr(GroupScalars._fields.index("one_minus_beta2"))
G_DECAY_RATE2 = tl.constexpr(GroupScalars._fields.index("decay_rate2"))
G_RHO_INF = tl.constexpr(GroupScalars._fields.index("rho_inf"))
G_LIMIT_VARIANCE = tl.constexpr(GroupScalars._fields.index("limit_variance"))
G_RHO_THRESHOLD = tl.constexpr(GroupScalars._fields.index("rho_threshold"))
G_EPS = tl.constexpr(GroupScalars._fields.index("eps"))
G_L2_DECAY = tl.constexpr(GroupScalars._fields.index("l2_decay"))
G_DECOUPLED_DECAY = tl.constexpr(GroupScalars._fields.index("decoupled_decay"))
G_SIGN = tl.constexpr(GroupScalars._fields.index("sign"))
G_UNRECTIFIED_RULE = tl.constexpr(GroupScalars._fields.index("unrectified_rule"))
G_KIND = tl.constexpr(GroupScalars._fields.index("kind"))
G_SEED = tl.constexpr(GroupScalars._fields.index("seed"))
G_WIDTH = tl.constexpr(len(GroupScalars._fields))

EXACT = tl.constexpr(float(rectification.KINDS.index("exact")))
ADAM = tl.constexpr(float(rectification.KINDS.index("none")))
SERIES = tl.constexpr(tuple(reversed(rectification.SERIES)))
TERMS = tl.constexpr(len(rectification.SERIES))
SERIES_FROM = tl.constexpr(rectification.SERIES_FROM)

LANES = tl.constexpr(layout.NORM_TILE)
NORM_RUN = tl.constexpr(layout.NORM_RUN)
BLOCK = tl.constexpr(layout.BLOCK)
PARAM_STREAM = tl.constexpr(philox.PARAM_STREAM)
MOMENT_STREAM = tl.constexpr(philox.MOMENT_STREAM)
RANDS_PER_CALL = tl.constexpr(philox.RANDS_PER_CALL)
MIN_SCALE = tl.constexpr(quantization.MIN_SCALE)
ROOT_TOP = tl.constexpr(quantization.ROOT_TOP)
ROOT_UNIT = tl.constexpr(1.0 / quantization.ROOT_TOP)
FIRST_UNIT = tl.constexpr(1.0 / 508.0)
CODE_UNIT = tl.constexpr(quantization.CODE_UNIT)
CODE_OFFSET = tl.constexpr(2.0**9 * quantization.CODE_UNIT)
CODE_BIAS = tl.constexpr(2.0**23 * quantization.CODE_UNIT)
HALF_MIN = tl.constexpr(quantization.HALF_MIN)
