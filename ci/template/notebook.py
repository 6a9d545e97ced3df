# %% [markdown] id=title
# # @NUMBER@ · @TITLE@
#
# **Question.** One sentence: what the reader will know at the end. **Answer.** One sentence. It takes @TIME@ on one CPU core and needs no download.
#
# | claim | what is tested | source |
# |---|---|---|
# | C1 | A leaky integrator's recurrence equals its convolution | derived here |
# | C2 | Its memory sums to 1/(1 - a) | geometric series |
# %% id=setup tags=setup
# %% id=parameters tags=parameters
seed: int = 0  # seed of every random draw
steps: int = 64  # length of the signal
a: float = 0.9  # decay of the integrator
# %% id=check
import numpy as np

from lib import @MODULE@

kit.check(seed=(0, None), steps=(2, 4096), a=(0.0, 0.999))
claims = kit.Claims("@NAME@")
# %% [markdown] id=story
# ## One idea, in a few lines
#
# Motivation, then the equation, then the code, then a check, then a figure. The recurrence $x_k = a\,x_{k-1} + u_k$ is the convolution of $u$ with the kernel $a^l$.
# %% id=idea
u = np.random.default_rng(seed).standard_normal(steps)  # (steps,)
x = np.zeros(steps)
for k in range(steps):
    x[k] = a * x[k - 1] + u[k] if k else u[k]

y = np.convolve(u, a ** np.arange(steps))[:steps]  # (steps,)
agree = np.abs(x - @MODULE@.leaky(u, a)).max()
claims.identity(
    "C1",
    "A leaky integrator's recurrence equals its convolution",
    residual=max(np.abs(x - y).max(), agree),
    tol=1e-10,
    source="derived here",
)
claims.theorem(
    "C2",
    "Its memory sums to 1/(1 - a)",
    measured=(a ** np.arange(5000)).sum(),
    expected=1 / (1 - a),
    rtol=1e-6,
    source="geometric series",
)
# %% id=figure
import matplotlib.pyplot as plt

fig, ax = plt.subplots()
ax.plot(u, color=kit.COLORS["grey"], lw=1, label="input")
ax.plot(x, color=kit.COLORS["blue"], label="memory")
ax.set(xlabel="step", ylabel="value", title="A leaky memory smooths its input")
ax.legend()
kit.show(fig, "A noisy input and the smoother memory of a leaky integrator.")
# %% [markdown] id=claims-head
# ## Claims
# %% id=claims tags=claims
claims.show()
# %% [markdown] id=full
# ## At full size
# %% id=recorded
recorded = kit.show_recorded("@NAME@", "long")
# %% [markdown] id=exercises
# ## Exercises
#
# 1. What is the half-life of the memory, in steps? <details><summary>Hint</summary>Solve $a^k = 1/2$.</details>
#
# ## References
#
# - Who, what, where (arXiv id).
