# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Handwritten digits from noise, in two minutes on a CPU
#
# This notebook trains a small diffusion transformer by rectified flow. Every object is plotted before it is used.
# In Colab, run `!pip install archirf_jax` first.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import archirf_jax as arf

STEPS = globals().get("STEPS", 2_000)  # fewer for a quick look
WORKDIR = globals().get("WORKDIR", "runs/quickstart")
DATA_DIR = globals().get("DATA_DIR", "data")
IMAGES = globals().get("IMAGES")  # to compare; None = as many as the data has

# %% [markdown]
# ## The data
# 1,797 grey digits of 8x8 pixels, each with its class.

# %%
data = arf.data.load("digits", dir=DATA_DIR)
print(len(data), "images,", data.num_classes, "classes:", ", ".join(data.class_names))
real, labels = data.arrays["image"], data.arrays["label"]
rows = np.stack([real[labels == label][:8] for label in range(data.num_classes)])
arf.show(rows)

# %% [markdown]
# ## From an image to noise
# Rectified flow goes on a line from data (t = 0) to noise (t = 1): `x_t = (1 - t) x0 + t eps`. The network learns the
# velocity `v = eps - x0`, which does not depend on t.

# %%
flow = arf.RectifiedFlow()
x0 = jnp.asarray(real[:4] / 127.5 - 1, jnp.float32)
eps = jax.random.normal(jax.random.key(0), x0.shape)
path = [flow.noised(x0, eps, jnp.float32(t)) for t in np.linspace(0, 1, 9)]
arf.show(np.stack([arf.data.to_uint8(x) for x in path], axis=1))

# %% [markdown]
# What the network should answer for these images, scaled to be seen:

# %%
arf.show(arf.data.to_uint8(flow.target(x0, eps, jnp.zeros(4)) / 3), columns=4)

# %% [markdown]
# ## The network
# A DiT cuts an image into patches of 2x2 pixels and attends over them, conditioned on time and label.

# %%
model = arf.models.DiT.preset("tiny/2", num_classes=data.num_classes)
print(model)

# %% [markdown]
# ## Training
# The same call goes on where it was interrupted. Everything lies in `workdir`: open it again at any time.

# %%
run = arf.train(model, flow, data, steps=STEPS, batch_size=128, learning_rate=2e-3, ema=0.998, workdir=WORKDIR)
run.plot_loss()

# %% [markdown]
# ## Samples
# One row a class. Guidance pushes samples towards their class; a scale of 1 is off.

# %%
images = run.sample(labels=range(10), per_class=8, solver="dpmpp_2m", steps=20, guidance_scale=1.5, seed=0)
arf.show(images, columns=8)

# %% [markdown]
# ## Samples on their way
# A denoiser is a process and a network, here under guidance; a solver takes steps along a grid of times.

# %%
shape, label, keys = x0.shape[1:], jnp.arange(10), jax.random.split(jax.random.key(0), 10)
grid, heun = arf.grids.Uniform().times(flow, 20), arf.solvers.Heun()
denoise = run.denoiser(guidance_scale=1.5)
states = arf.sample(keys, denoise, {"label": label}, shape, grid=grid, solver=heun, stride=4)
arf.show(np.stack([arf.data.to_uint8(state) for state in states], axis=1))

# %% [markdown]
# ## The same by hand
# Everything above is functions of arrays. A training and sampling loop of one's own takes a few lines: the objective
# draws times and noise and computes losses, whatever optimizer and loop it is called from.

# %%
objective = arf.objectives.Regression(time_distribution="logit_normal", condition_dropout=0.1)
params = arf.models.init(model, jax.random.key(0), x0[:1], jnp.zeros(1), {"label": jnp.zeros(1, int)})
setting = arf.Setting(flow, null={"label": jnp.int32(10)}, step=jnp.int32(0))
optimizer = optax.adam(2e-3)


@jax.jit
def step(params, state, key):
    """One update of the parameters."""
    chosen = jax.random.choice(key, len(real), (128,))
    images, conditions = arf.data.to_float(jnp.asarray(real)[chosen]), {"label": jnp.asarray(labels)[chosen]}
    drawn = objective.draw(key, setting, images, conditions)

    def loss(params):
        return jnp.mean(objective.losses(arf.Models(arf.bind(model, params)), setting, drawn)[0])

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


state = optimizer.init(params)
for i in range(STEPS // 4):
    params, state, value = step(params, state, jax.random.key(i))
print(f"loss {value:.3f}")
by_hand = arf.NetworkDenoiser(flow, arf.bind(model, params))
arf.show(arf.data.to_uint8(arf.sample(keys, by_hand, {"label": label}, shape, grid=grid, solver=heun)))

# %% [markdown]
# ## How good are they?
# The Frechet distance compares the pixels of samples and real images; beside it stands what half of the real images
# have. Lower is better.

# %%
figures = run.evaluate(images=IMAGES)
print({name: round(value, 4) for name, value in figures.items()})
again = arf.open(WORKDIR)
assert np.array_equal(again.sample(labels=[3], per_class=2, seed=1), run.sample(labels=[3], per_class=2, seed=1))
