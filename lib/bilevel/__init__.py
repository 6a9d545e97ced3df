"""Bilevel optimisation: penalties, hypergradients, local constraints, known answers.

Losses are functions of parameters, a tensor or a tree of them (`trees`): what
`torch.func.functional_call` makes of a module fits. `penalty` holds V-PBGD, G-PBGD and
the weighted sum that is left of them where both levels share their variables;
`hypergradients` implicit differentiation and unrolling; `local` K-step local
constraints (MAML and its relatives); `problems` what they are checked on.
Sources: 2302.05185 (PBGD), 2401.06980 (BL-JUST), 2508.19990 (PTEC), 1703.03400 (MAML).
"""

from lib.bilevel.hypergradients import (
    conjugate_gradient,
    hessian_vector,
    implicit_hypergradient,
    neumann,
    unrolled_hypergradient,
)
from lib.bilevel.local import (
    exact_local,
    first_order_local,
    largest_curvature,
    mixing,
    reptile,
)
from lib.bilevel.penalty import (
    gradient_penalty_step,
    inner_steps,
    joint_gradient,
    penalty_hypergradient,
    penalty_step,
    ramp,
)
from lib.bilevel.problems import (
    Cleaning,
    Sources,
    Valley,
    fixed_point,
    toy_lower,
    toy_points,
    toy_slope,
    toy_upper,
)
from lib.bilevel.trees import average, descend, detached, dot, mapped, minus, plus

__all__ = [
    "Cleaning",
    "Sources",
    "Valley",
    "average",
    "conjugate_gradient",
    "descend",
    "detached",
    "dot",
    "exact_local",
    "first_order_local",
    "fixed_point",
    "gradient_penalty_step",
    "hessian_vector",
    "implicit_hypergradient",
    "inner_steps",
    "joint_gradient",
    "largest_curvature",
    "mapped",
    "minus",
    "mixing",
    "neumann",
    "penalty_hypergradient",
    "penalty_step",
    "plus",
    "ramp",
    "reptile",
    "toy_lower",
    "toy_points",
    "toy_slope",
    "toy_upper",
    "unrolled_hypergradient",
]
