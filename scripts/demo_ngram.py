#!/usr/bin/env python3
"""A 5-gram model with interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998), over ids of tokens.

    demo_ngram.py TRAIN HELD FIRST COUNT

TRAIN and HELD are files of ids, decimal and divided by white space, all below 4096. Prints JSON: the mean negative log-likelihood of the
COUNT ids of HELD from place FIRST on, each behind the four before it. Grams are integers of 12 bits an id, the last id lowest. It needs 2 GB.
"""

import json
import math
import sys
from array import array
from itertools import groupby

ORDER, BITS = 5, 12


def ids(path):
    return array("H", map(int, open(path).read().split()))


def grams(tokens, n):
    """All grams of `n` tokens, in the order of the text."""
    code, mask = 0, (1 << (BITS * n)) - 1
    for at, token in enumerate(tokens):
        code = (code << BITS | token) & mask
        if at >= n - 1:
            yield code


class Counts:
    """Of one order: counts of grams, and of histories their sums and how many words follow once, twice and more often."""

    def __init__(self, counted, histories):
        """Discounts follow from all grams; those of other histories are not kept."""
        self.grams, self.histories = {}, {}
        of = [0] * 5
        for code, count in counted:
            if count <= 4:
                of[count] += 1
            if code >> BITS in histories:
                self.grams[code] = count
                history = self.histories.setdefault(code >> BITS, [0, 0, 0, 0])
                history[0] += count
                history[min(count, 3)] += 1
        y = of[1] / (of[1] + 2 * of[2])
        self.discounts = [0.0] + [n - (n + 1) * y * of[n + 1] / of[n] for n in (1, 2, 3)]

    def probability(self, code, lower):
        """Of the last id of a gram behind the others, where the order below gives `lower`."""
        history = self.histories.get(code >> BITS)
        if history is None:
            return lower
        total, *follow = history
        count = self.grams.get(code, 0)
        kept = sum(d * n for d, n in zip(self.discounts[1:], follow))
        return (max(count - self.discounts[min(count, 3)], 0.0) + kept * lower) / total


def main():
    train, held = ids(sys.argv[1]), ids(sys.argv[2])
    first, count = int(sys.argv[3]), int(sys.argv[4])
    needed = [{0}] + [set(grams(held, n)) for n in range(1, ORDER)]
    orders, above = [], None
    for n in range(ORDER, 0, -1):
        if above is None:
            codes = sorted(grams(train, n))
        else:
            # Of lower orders it counts how many different words stand before a gram.
            mask = (1 << (BITS * n)) - 1
            codes = sorted(code & mask for code in above)
        counted = [(code, sum(1 for _ in same)) for code, same in groupby(codes)]
        above = array("Q", (code for code, _ in counted))
        del codes
        orders.append(Counts(counted, needed[n - 1]))
    orders.reverse()
    vocabulary = 1 << BITS
    total = 0.0
    for at in range(first, first + count):
        p = 1.0 / vocabulary
        for n, order in enumerate(orders[:at + 1], 1):
            code = 0
            for token in held[at - n + 1:at + 1]:
                code = code << BITS | token
            p = order.probability(code, p)
        total -= math.log(p)
    print(json.dumps({"order": ORDER, "train_tokens": len(train), "tokens": count, "nll": total / count,
                      "ppl": math.exp(total / count)}))


if __name__ == "__main__":
    main()
