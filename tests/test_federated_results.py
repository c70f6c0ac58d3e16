"""The arithmetic of the tables of learning together, from made-up figures."""

import dataclasses

from benchmarks import federated
from benchmarks.federated_page import means, page, picture


def record():
    def arm(*seeds):
        return [[{"score": s, "violated": 0.25}, {"score": s - 2.0, "violated": 0.75}] for s in seeds]

    arms = {"no control": arm(-9.0), "alone": arm(-4.0, -6.0), "central": arm(-1.0, -1.0), "FedAvg": arm(-2.0, -2.0)}
    kept = {"seconds": 1.0, "size": dataclasses.asdict(federated.QUICK)}
    arms["alone, gently"] = arm(-7.0, -7.0)
    five = {"feeders": ["a", "b"], "arms": arms, "noise": {"8": 0.5}, "parameters": 12, **kept}
    row = {
        "clients": 5, "epsilon": None, "noise_multiplier": 0.0, "width": 4, "parameters": 7, "noise_to_clip": 0.0,
        "seeds": [{"score": -3.0, "violated": 0.25, "inside": 0.5}, {"score": -3.0, "violated": 0.25, "inside": 1.0}],
    }  # fmt: skip
    customers = {
        "rows": [row], "no control": {"score": -8.0}, "the middle": {"score": -7.5}, "alone": [{"score": -7.0}], **kept
    }  # fmt: skip
    return {"command": "c", "made_on": "m", "five": five, "customers": customers}


def test_what_is_closed_and_shown(tmp_path):
    made = record()
    assert means(made["five"], "alone") == [-5.0, -7.0]
    lines = page(made, federated.__doc__ or "").splitlines()
    scores, violated = [line for line in lines if line.startswith("| FedAvg |")]
    # Alone -6 (gently -8) and central -2 as means over seeds and utilities; together -3.
    each = "-2.000 (-2.000 to -2.000) | -4.000 (-4.000 to -4.000)"
    assert scores == f"| FedAvg | -3.000 (-3.000 to -3.000) | 75 % | {each} |"
    assert violated == "| FedAvg | 50.0 (50.0 to 50.0) | 25.0 (25.0 to 25.0) | 75.0 (75.0 to 75.0) |"
    assert "| 5 | 7 | none | 0 | 0 | 75 % | -3.000 (-3.000 to -3.000) | 25.0 (25.0 to 25.0) |" in lines
    assert "No control: -8.000. The middle of every range: -7.500. Single owners alone: -7.000." in lines
    picture(made, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 5000
    del made["customers"]
    assert "## Owners of single days" not in page(made, federated.__doc__ or "")
