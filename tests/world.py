"""A small world where the right answer is known for every user.

Items come in blocks; the warm items of a block form a ring. A user belongs to one block and walks along its ring, so

- the items a user will like are the other items of the own block, and no others;
- the very next item is the successor of the last one (valid: the successor of the training history, test: one further);
- cold items, which nobody has clicked, can be placed by their text alone, which points to their block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Interactions, Ints
from graphllmrec.protocol import Task, TextVectors
from graphllmrec.rng import rng, torch_rng

BLOCKS, WARM, COLD, USERS, STEPS, DIM = 6, 10, 2, 20, 5, 8  # WARM, COLD and USERS per block; STEPS of training history


@dataclass(frozen=True)
class World:
    """Users and items of the block world. Rows of items: the warm ones block by block, then the cold ones."""

    split: Split  # leave-last-out, ordered; the test target is the next item on the ring
    text: TextVectors  # a noisy copy of the block's direction per item; item 0 has no text
    item_block: Ints  # (num_items,)
    user_block: Ints  # (num_users,)
    cold: Ints  # rows of the items without clicks
    directions: torch.Tensor  # (BLOCKS, DIM) text direction of every block

    def task(self, seed: int = 0, *, with_text: bool = True) -> Task:
        """What a model is fitted on."""
        return Task(self.split, self.text if with_text else None, seed)

    def cold_of(self, block: int) -> Ints:
        """Cold items of one block."""
        return self.cold[self.item_block[self.cold] == block]

    def new_text(self, block: int) -> TextVectors:
        """Text of one more item of `block`."""
        return TextVectors(self.directions[block : block + 1].clone(), torch.ones(1, dtype=torch.bool))

    def cold_split(self) -> Split:
        """The same training, but what is to be found are all cold items of the user's block."""
        user = np.repeat(np.arange(self.split.num_users), COLD)
        item = np.concatenate([self.cold_of(block) for block in self.user_block])
        order = np.tile(np.arange(COLD) + STEPS + 1, self.split.num_users)
        return replace(self.split, test=Interactions(user, item, order), kind="cold-item")


def block_world(seed: int = 0) -> World:
    """The world; `seed` only moves the noise of the texts."""
    user_block = np.repeat(np.arange(BLOCKS), USERS)
    start = np.tile(np.arange(USERS) % WARM, BLOCKS)  # every item is the start of as many walks
    steps = np.arange(STEPS + 2)
    walks = user_block[:, None] * WARM + (start[:, None] + steps) % WARM  # (num_users, STEPS + 2) item rows
    users = np.arange(len(user_block))

    def part(first: int, last: int) -> Interactions:
        order = np.tile(steps[first:last], len(users))
        return Interactions(np.repeat(users, last - first), walks[:, first:last].reshape(-1), order)

    item_block = np.concatenate([np.repeat(np.arange(BLOCKS), WARM), np.repeat(np.arange(BLOCKS), COLD)])
    directions = torch.linalg.qr(torch.randn(DIM, BLOCKS, generator=torch_rng(seed, "world-directions")))[0].T
    noise = torch.from_numpy(rng(seed, "world-noise").normal(0, 0.05, (len(item_block), DIM)).astype(np.float32))
    present = torch.arange(len(item_block)) > 0
    vectors = torch.nn.functional.normalize(directions[torch.from_numpy(item_block)] + noise, dim=1) * present[:, None]
    return World(
        split=Split(
            kind="leave-last-out",
            num_users=len(users),
            num_items=len(item_block),
            train=part(0, STEPS),
            valid=part(STEPS, STEPS + 1),
            test=part(STEPS + 1, STEPS + 2),
            valid_in_history=True,
            ordered=True,
        ),
        text=TextVectors(vectors.contiguous(), present),
        item_block=item_block,
        user_block=user_block,
        cold=np.arange(BLOCKS * WARM, len(item_block)),
        directions=directions.contiguous(),
    )
