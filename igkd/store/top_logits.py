"""The largest logits of a teacher with many classes, and the mass of the rest.

Of 1,000 logits a student learns almost all from the few largest (Shen, Xing 2022), and a view with all of them would take 2 KB. So of each
view the k largest logits t_j are kept with their classes, and of the rest R only its log-sum-exp

    K(b) = log sum_{j in R} exp(b t_j),   b = 1 / T,

which is the logit, divided by T, of "any other class" at temperature T. It depends on T, and not in proportion, so it is kept at three
temperatures; at T = infinity it is log |R|. Between these four, K is interpolated by the cubic in b through them. That is exact at T = 1, 2
and 4; in between, for 1,000 normal logits of standard deviation 3 and k = 32, the rest's probability is right to 0.003
(`tests/igkd/store/test_top_logits.py`). Below T = 1 it would be a guess.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MANY = 256
"""A teacher of more classes than this has many: views of it hold the largest logits only."""
TEMPERATURES = (1.0, 2.0, 4.0)
"""Temperatures at which the log-sum-exp of the rest is kept."""
REST = len(TEMPERATURES)


def bytes_of_crop(classes: int, top: int | None) -> int:
    """Bytes of one crop's stored logits: float16, and with `top` of them also those of the rest and the classes' numbers, int32."""
    return 2 * classes if top is None else 2 * (top + REST) + 4 * top


@dataclass(frozen=True)
class TopLogits:
    """The teacher's k largest logits of each of B crops, and what is kept of the others."""

    classes: Tensor
    """int64 (B, k): the classes of the largest logits."""
    logits: Tensor
    """float32 (B, k): the largest logits, in falling order."""
    rest: Tensor
    """float32 (B, 3): the log-sum-exp of the others at `TEMPERATURES`."""

    def at(self, temperature: float, classes: int) -> Tensor:
        """Logits divided by the temperature, of the k classes and of all others as one outcome: float32 (B, k + 1).

        Args:
            temperature: T >= 1.
            classes: number of the teacher's classes, more than k.
        """
        if temperature < 1:
            raise ValueError(f"the rest of the logits is not known at a temperature of {temperature}, below 1")
        places = [0.0, *(1 / known for known in TEMPERATURES)]
        beta = 1 / temperature
        # Lagrange's form of the polynomial through (places[i], K(places[i])).
        weights = [math.prod((beta - other) / (place - other) for other in places if other != place) for place in places]
        others = weights[0] * math.log(classes - self.classes.shape[1]) + self.rest @ self.rest.new_tensor(weights[1:])
        return torch.cat([self.logits / temperature, others[:, None]], dim=1)


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What views keep of a teacher's logits.

    Args:
        logits: float32 (N, classes).
        count: k, less than the number of classes.

    Returns:
        float32 (N, k + 3), the k largest logits and the log-sum-exp of the others at `TEMPERATURES`; int32 (N, k), their classes.
    """
    top = logits.topk(count, dim=1)
    others = logits.scatter(1, top.indices, -math.inf)
    rest = [(others / temperature).logsumexp(dim=1, keepdim=True) for temperature in TEMPERATURES]
    return torch.cat([top.values, *rest], dim=1), top.indices.to(torch.int32)


def unpacked(values: Tensor, classes: Tensor) -> TopLogits:
    """The inverse of `largest`: from (B, k + 3) and (B, k), of any precision."""
    return TopLogits(classes.long(), values[:, :-REST].float(), values[:, -REST:].float())
