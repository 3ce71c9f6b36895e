"""One solver a file, found by the file's name; each file ends in `build`, the frozen dataclass that makes the steps.

    init(denoise, grid, x)                          -> memory: the denoiser's own and what the solver remembers
    step(z, denoise, x, t, t_next, y, memory)       -> x at t_next, memory

z is standard normal noise like x, fresh at each step; t and t_next are scalars, the same for all images. `init`
raises a UserError where grid, process and solver do not fit.
"""
