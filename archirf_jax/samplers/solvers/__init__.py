"""One solver a file, found by the file's name; each file ends in `build`, the frozen dataclass that makes the steps.

    init(x)                                                     -> memory (a pytree; () where none is needed)
    step(keys, process, model_fn, x, t, t_next, y, memory)      -> x at t_next, memory

keys are (B,), one an image; t and t_next are scalars, the same for all images.
"""
