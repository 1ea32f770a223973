"""The grokking detector in a plain PyTorch loop: matrix completion that generalises late.

    python examples/grokking.py

The target has rank 2. The product of two large square matrices fits its known entries early. Weight decay then reduces
the rank of the product, and the unknown entries are predicted correctly. With `DECAY = 0` no event is detected.
"""

from __future__ import annotations

import torch

from graphllmrec.grokking.detector import GrokkingDetector, Scale

SIZE, RANK, STEPS, RATE, DECAY = 40, 2, 3000, 0.02, 0.1


def main() -> None:
    torch.manual_seed(0)
    target = torch.randn(SIZE, RANK) @ torch.randn(RANK, SIZE) / RANK**0.5
    known = torch.rand(SIZE, SIZE) < 0.4
    left, right = (torch.nn.Parameter(3 * torch.randn(SIZE, SIZE) / SIZE**0.5) for _ in range(2))
    optimizer = torch.optim.SGD([left, right], lr=RATE, weight_decay=DECAY)
    detector = GrokkingDetector({"loss": Scale(chance=float(target.square().mean()))})  # loss of predicting 0

    for step in range(STEPS + 1):
        error = (left @ right.T - target).square()
        if step % 10 == 0:
            train, valid = (float(error.detach()[part].mean()) for part in (known, ~known))
            for event in detector.update(step, train={"loss": train}, valid={"loss": valid}):
                when = f"since step {event.onset}, detected at {event.detected}"
                print(f"{event.kind} {when}: losses {train:.4f}, {valid:.4f}")
        optimizer.zero_grad()
        (error[known].sum() / 2).backward()
        optimizer.step()
    print(f"step {STEPS}: {detector.state()}, losses {train:.4f}, {valid:.4f}")
    until = detector.waits_until(RATE, DECAY)
    print("no later event expected" if until is None else f"an event is plausible until step {until:.0f}")


if __name__ == "__main__":
    main()
