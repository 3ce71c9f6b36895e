"""Guidance: one kind a file, found by the file's name; each file ends in `build`, the frozen dataclass of a denoiser.

`build` gets the objects that it has parameters for: `inner` (the Denoiser to guide), `null` (the condition that stands
for none) and `weak` (a weaker Denoiser); its other parameters are fields of a configuration, `scale` among them.
"""
