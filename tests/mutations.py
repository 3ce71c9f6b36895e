"""Damage as disks, networks and strangers do it."""

from __future__ import annotations

import random
from collections.abc import Iterator

MUTATIONS = 1000


def mutated(content: bytes, seed: int) -> Iterator[bytes]:
    """Bytes changed, cut out, doubled, or the end cut off, some at a time."""
    chance = random.Random(seed)
    for _ in range(MUTATIONS):
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at, kind = chance.randrange(len(changed)), chance.randrange(4)
            if kind == 0:
                changed[at] = chance.randrange(256)
            elif kind == 1:
                del changed[max(at, 1) : at + chance.randrange(2, 9)]
            elif kind == 2:
                changed[at:at] = changed[at : at + chance.randrange(1, 9)]
            else:
                del changed[max(at, 1) :]
        yield bytes(changed)
