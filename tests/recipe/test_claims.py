"""Claims are judged by paired intervals."""

import pytest

from r1.claims import claims as run_claims
from r1.config import compose_config, plain
from r1.intervals import Interval
from r1.recipe.claims import as_markdown, difference, judge, put_to_test
from r1.recipe.dry_run import check
from r1.recipe.stages import write_json


def evaluation(accuracies, length=10.0):
    rows = {
        f"p{i}": {"accuracy": [a], "length": [length + length * (i % 2)], "reflection": [0.0]}
        for i, a in enumerate(accuracies)
    }
    return {"problems": rows}


GOOD, BAD = evaluation([1.0] * 39 + [0.0], length=12.0), evaluation([0.0] * 40)


def test_the_difference_is_paired_over_shared_problems():
    a, b = evaluation([1.0, 1.0, 0.0, 1.0]), evaluation([0.0, 1.0, 0.0])
    # Shared are p0, p1 and p2, with differences 1, 0 and 0: the mean is 1/3.
    assert difference(a, b, "accuracy").mean == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="share no problem"):
        difference(a, {"problems": {"other": {}}}, "accuracy")
    with pytest.raises(ValueError, match="quantity: found 'acuracy'"):
        difference(a, b, "acuracy")


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.01, 0.2, 0.0, "reproduced"),
        (-0.2, -0.01, 0.0, "not reproduced"),
        (-0.1, 0.1, 0.0, "open"),
        (0.0, 0.0, 0.0, "open"),
        (0.0, 0.0, 0.03, "open"),
        (1.0, 1.0, 0.0, "open"),
        (-0.1, -0.1, 0.0, "open"),
        (-0.02, 0.01, 0.03, "reproduced"),
        (-0.2, -0.04, 0.03, "not reproduced"),
    ],
)
def test_an_interval_settles_a_claim_or_leaves_it_open(low, high, margin, verdict):
    assert judge(Interval(mean=(low + high) / 2, low=low, high=high), margin) == verdict


def test_a_claim_is_as_good_as_all_its_comparisons():
    up, down = {"a": "good", "b": "bad", "says": "up"}, {"a": "bad", "b": "good", "says": "down"}
    same = {"a": "good", "b": "good", "says": "same"}
    claims = {
        "1": {"claim": "all", "comparisons": [up, up | {"quantity": "length"}]},
        "2": {"claim": "none", "comparisons": [down]},
        "3": {"claim": "some", "comparisons": [up, down]},
        "4": {"claim": "nothing settled", "comparisons": [same]},
        "5": {"claim": "not tried", "note": "why"},
    }
    tested = put_to_test(claims, [{"good": GOOD, "bad": BAD}])
    assert [t["verdict"] for t in tested] == ["reproduced", "not reproduced", "mixed", "open", "not measured"]
    assert tested[0]["comparisons"][1]["mean"] == 3.0  # 12 tokens against 10, and every other time 24 against 20
    report = as_markdown(tested, "make it")
    assert "`make it`" in report and "+97.5 (+92.5 to +100.0)" in report and "| why |" in report
    with pytest.raises(ValueError, match=r"claims.1: no evaluation 'god'\. Did you mean 'good'"):
        put_to_test({"1": {"claim": "typo", "comparisons": [up | {"a": "god"}]}}, [{"good": GOOD, "bad": BAD}])


def test_over_several_seeds_the_interval_is_of_the_seeds():
    # Differences 0.2, 0.4 and 0.6: mean 0.4, sd 0.2; t(0.975, 2) = 4.303 makes the half-width 4.303 * 0.2 / sqrt(3).
    runs = [{"a": evaluation([1.0] * k + [0.0] * (5 - k)), "b": evaluation([0.0] * 5)} for k in (1, 2, 3)]
    tested = put_to_test({"1": {"claim": "c", "comparisons": [{"a": "a", "b": "b", "says": "up"}]}}, runs)
    row = tested[0]["comparisons"][0]
    assert row["mean"] == pytest.approx(0.4) and row["mean_a"] == pytest.approx(0.4)
    assert row["high"] - row["mean"] == pytest.approx(4.303 * 0.2 / 3**0.5, rel=1e-3)
    assert row["verdict"] == "open"  # whatever the seeds' own intervals say
    assert [round(seed["mean"], 6) for seed in row["seeds"]] == [0.2, 0.4, 0.6]
    report = as_markdown(tested, "make it", num_runs=3)
    assert all(f"{mean} (" in report for mean in ("+20.0", "+40.0", "+60.0")) and "over 3 seeds" in report


def test_runs_are_read_from_the_folders_of_pipelines(tmp_path):
    for seed, count in enumerate((30, 36)):
        for label, content in {"good": GOOD, "bad": evaluation([0.0] * count + [1.0] * (40 - count))}.items():
            write_json(tmp_path / f"s{seed}" / f"eval_{label}" / "evaluation.json", content)
    comparison = {"a": "good", "b": "bad", "says": "up"}
    cfg = compose_config([f"runs=[{tmp_path}/s0,{tmp_path}/s1]"], name="claims")
    cfg.claims, cfg.output_dir = (
        {"command": "", "claims": {"1": {"claim": "c", "comparisons": [comparison]}}},
        str(tmp_path),
    )
    tested = run_claims(cfg)
    # The last problem is right in the bad ones and wrong in the good one.
    assert tested[0]["comparisons"][0]["mean"] == pytest.approx((29 / 40 + 35 / 40) / 2)
    assert "over 2 seeds" in (tmp_path / "claims.md").read_text()
    cfg.runs = [str(tmp_path / "s2")]
    with pytest.raises(ValueError, match="expected the folder of a finished pipeline"):
        run_claims(cfg)


def test_an_evaluation_on_benchmarks_is_compared_by_their_names(tmp_path):
    for label, content in {"good": GOOD, "bad": BAD}.items():
        write_json(tmp_path / label / "evaluation.json", {"benchmarks": {"aime24": content, "math500": BAD}})
    cfg = compose_config([f"+evaluations.{k}={tmp_path}/{k}/evaluation.json" for k in ("good", "bad")], name="claims")
    comparison = {"a": "good.aime24", "b": "bad.aime24", "says": "up"}
    cfg.claims = {"command": "", "claims": {"1": {"claim": "c", "comparisons": [comparison]}}}
    cfg.output_dir = str(tmp_path)
    check("claims", plain(cfg))
    assert run_claims(cfg)[0]["comparisons"][0]["mean"] == 39 / 40
    cfg.claims.claims["1"].comparisons[0].a = "good.aime"
    with pytest.raises(ValueError, match=r"no evaluation 'good.aime'\. Did you mean 'good.aime24'"):
        run_claims(cfg)


def test_every_shipped_claim_compares_what_the_pipeline_evaluates():
    pipeline = plain(compose_config(["pipeline=r1_tiny"], name="pipeline"))["pipeline"]
    evaluated = {name.removeprefix("eval_") for name in pipeline["definitions"] if name.startswith("eval_")}
    evaluated |= {key.removeprefix("+evaluations.") for key in pipeline["definitions"]["claims"]["inputs"]}
    claims = plain(compose_config(["claims=r1_tiny"], name="claims"))["claims"]["claims"]
    assert [str(label) for label in claims] == [str(n) for n in range(1, 11)]
    named = {c[side] for node in claims.values() for c in node.get("comparisons", []) for side in "ab"}
    assert named <= evaluated


def test_what_had_nothing_to_measure_is_reported_and_stops_nothing():
    claims = {"2": {"claim": "c", "comparisons": [{"a": "fixed", "b": "resampled", "says": "s"}]}}
    (tested,) = put_to_test(claims, [{"fixed": {"problems": {}}, "resampled": {"problems": {}}}])
    assert tested["verdict"] == tested["comparisons"][0]["verdict"] == "not measured"
    assert "| none | none | no problems |  | not measured" in as_markdown([tested], "x")


def test_a_quantity_that_an_evaluation_lacks_is_named():
    with pytest.raises(ValueError, match="'per_try' is not in this evaluation, which has accuracy, length"):
        difference(GOOD, BAD, "per_try")
