"""DDPM or rectified flow, all else equal."""
