"""An environment for fsq: two jugs, a tap, and an amount to be measured in as few steps as possible.

Standard library only. Every answer follows from its request alone, so nothing is remembered between two of them.
"""

import json
import random
import sys
from collections import deque


def instances(largest):
    """Jugs of two sizes and an amount that can be measured, with the fewest steps that takes."""
    found = []
    for big in range(4, largest + 1):
        for small in range(2, big):
            for goal in range(1, big):
                steps = distance({"sizes": [big, small], "held": [0, 0], "goal": goal, "left": 99})
                if steps is not None and steps >= 2:
                    found.append(([big, small], goal, steps))
    return found


def moves(state):
    """What can be done, with what it leads to."""
    led = {}
    for name, jug, other in [("big", 0, 1), ("small", 1, 0)]:
        held, sizes = state["held"], state["sizes"]
        room = min(held[jug], sizes[other] - held[other])
        for action, change in [
            (f"fill {name}", {jug: sizes[jug] - held[jug]}),
            (f"empty {name}", {jug: -held[jug]}),
            (f"pour {name}", {jug: -room, other: room}),
        ]:
            after = [held[0] + change.get(0, 0), held[1] + change.get(1, 0)]
            if after != held:
                led[action] = {**state, "held": after, "left": state["left"] - 1}
    return led


def distance(state):
    """The fewest steps to the goal, or None."""
    queue, seen = deque([(state, 0)]), {tuple(state["held"])}
    while queue:
        state, steps = queue.popleft()
        if state["goal"] in state["held"]:
            return steps
        for after in moves(state).values():
            if tuple(after["held"]) not in seen:
                seen.add(tuple(after["held"]))
                queue.append((after, steps + 1))
    return None


def described(state):
    """A state in the words that a policy reads, and the fields that it is to imagine."""
    (big, small), (in_big, in_small) = state["sizes"], state["held"]
    text = f"big {in_big} of {big} small {in_small} of {small} goal {state['goal']} steps {state['left']}"
    return {"state": state, "text": text, "rollout": {"big": in_big, "small": in_small, "steps": state["left"]}}


def end(state):
    if state["goal"] in state["held"]:
        return "success"
    return None if state["left"] > 0 else "failure"


EASY = instances(9)
HARD = [it for it in instances(12) if it[0][0] > 9]


def answer(request):
    ask = request["ask"]
    if ask == "hello":
        return {"protocol": 1, "name": "jugs", "steps_max": 24, "horizon": 3, "offers": ["act", "harder"]}
    if ask == "reset":
        # Which instances belong to which split is fixed here; the seed only picks one.
        places = {"test": range(0, 3), "calibration": range(3, 4), "train": range(4, 10)}[request["split"]]
        known = EASY if request["difficulty"] == "trained" else HARD
        own = [it for place, it in enumerate(known) if place % 10 in places]
        sizes, goal, steps = random.Random(request["seed"]).choice(own)
        start = {"sizes": sizes, "held": [0, 0], "goal": goal, "left": steps + 2}
        return {**described(start), "difficulty": f"{steps} steps"}
    state = request["state"]
    legal = moves(state) if end(state) is None else {}
    if ask == "legal":
        return {"actions": sorted(legal)}
    if ask == "step":
        if request["action"] not in legal:
            return {"illegal": f"expected one of: {', '.join(sorted(legal))}"}
        return described(legal[request["action"]])
    if ask == "verify":
        return {"end": end(state)}
    if ask == "act":
        draw = random.Random(request["seed"])
        if draw.random() < request["epsilon"]:
            return {"action": draw.choice(sorted(legal))}
        return {"action": min(sorted(legal), key=lambda it: distance(legal[it]))}
    return {"error": f"unknown request {ask}"}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"id": request["id"], **answer(request)}), flush=True)
