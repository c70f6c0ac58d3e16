"""The arithmetic of the tables of learning together, from made-up figures."""

import dataclasses

from benchmarks import federated


def record():
    def arm(*seeds):
        return [[{"score": s, "violated": 0.25}, {"score": s - 2.0, "violated": 0.75}] for s in seeds]

    arms = {"no control": arm(-9.0), "alone": arm(-4.0, -6.0), "central": arm(-1.0, -1.0), "FedAvg": arm(-2.0, -2.0)}
    five = {"feeders": ["a", "b"], "arms": arms, "noise": {"8": 0.5}, "parameters": 12}
    row = {
        "epsilon": None, "noise_multiplier": 0.0, "width": 4, "parameters": 7, "noise_to_clip": 0.0,
        "seeds": [{"score": -3.0, "inside": 0.5}, {"score": -3.0, "inside": 1.0}],
    }  # fmt: skip
    customers = {"clients": 5, "delta": 0.02, "rows": [row], "no control": {"score": -8.0}, "alone": [{"score": -7.0}]}
    return {
        "command": "c", "made_on": "m", "seconds": 1.0, "size": dataclasses.asdict(federated.QUICK), "five": five,
        "customers": customers,
    }  # fmt: skip


def test_what_is_closed_and_shown(tmp_path):
    made = record()
    assert federated.means(made["five"], "alone") == [-5.0, -7.0]
    lines = federated.page(made).splitlines()
    (together,) = [line for line in lines if line.startswith("| FedAvg |")]
    # Alone -6 and central -2 as means over seeds and utilities; together -3.
    assert together == "| FedAvg | -3.000 (-3.000 to -3.000) | 75 % | -2.000 | -4.000 | 50 % |"
    assert "| 7 | none | 0 | 0 | 75 % | -3.000 (-3.000 to -3.000) |" in lines
    assert "No control: -8.000. One owner alone: -7.000." in lines
    federated.picture(made, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 5000
    del made["customers"]
    assert "owners of single days" not in federated.page(made).split("## ", 1)[1]
