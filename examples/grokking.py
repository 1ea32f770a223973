"""The grokking detector in a plain PyTorch loop: a matrix of rank 2 is learned long after its known entries.

    python examples/grokking.py

The product of two large square matrices fits the known entries at once; weight decay then lowers its rank, and the
other entries become right. With `DECAY = 0` they never do, and the detector reports no late generalisation.
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
    detector = GrokkingDetector({"loss": Scale(chance=float(target.square().mean()))})  # the loss of the answer 0

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
    print("nothing to wait for" if until is None else f"worth waiting until step {until:.0f}")


if __name__ == "__main__":
    main()
