"""A page says what the folder says, whatever the folder lacks, and fetches nothing."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import tomli_w
import torch

from difftilt.errors import ConfigError, StateError
from difftilt.metrics.gap import optimality_gap
from difftilt.metrics.log_z import from_samples
from difftilt.report import compare, comparison_rows, write_comparison, write_report
from difftilt.tracking.run import RunFolder

STEPS, DESIGNS, LENGTH = 200, 1000, 50
SAFE_LINKS = {"https://arxiv.org/abs/2407.13734", "https://arxiv.org/abs/2402.16359"}


def make_config() -> dict:
    return {
        "settings": {
            "task": "utr-mrl", "algorithm": "ppo", "alpha": 0.1, "steps": STEPS, "seed": 0, "reward": "model",
            "judge": "model", "fix": ["48:ATG"], "steps_per_sample": 16, "evaluation_designs": DESIGNS,
        },
        "algorithm": {"alpha": 0.1, "learning_rate": 0.001, "batch_size": 128, "clip": 0.2, "passes": 2},
        "provenance": {
            "difftilt": "0.1.0", "commit": "1a2b3c4", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6",
            "date": "2025-11-21", "command": "difftilt finetune utr-mrl --algorithm ppo --alpha 0.1",
        },
        "task": {
            "name": "utr-mrl", "domain": "rna", "summary": "5'UTRs of 50 nt toward higher ribosome load",
            "score_name": "mean ribosome load (ribosomes per mRNA)", "score_unit": "",
            "reward_name": "ensemble of 5 convolutional nets", "judge_name": "ensemble of 4 recurrent nets",
            "citation": "Sample et al. 2019, Nature Biotechnology 37, 803.",
        },
    }  # fmt: skip


def make_metrics(noise: random.Random) -> list[dict]:
    records = []
    for step in range(1, STEPS + 1):
        done = 1 - math.exp(-step / 60)
        reward = 5.58 + 1.22 * done + noise.gauss(0, 0.03)
        records.append({
            "step": step, "reward": reward, "judge": reward - 0.15 * done if step % 5 == 0 else None,
            "kl_nats": 4.1 * done**1.5 + noise.gauss(0, 0.06), "gap_nats": 8.2 * (1 - done) + 0.6 + noise.gauss(0, 0.3),
            "oracle_calls": 128 * step - step // 7, "network_evaluations": 9_216 * step, "seconds": 0.74 * step,
            "alpha": 0.1, "feasible_fraction": 1.0, "return_std": 3.4 * math.exp(-step / 50) + 0.6,
            "ratio_first_pass": 2e-6 * (1 + noise.random()), "clip_fraction": 0.22 * math.exp(-step / 90),
            "gradient_norm": 2.5 * math.exp(-step / 80) + noise.random(),
        })  # fmt: skip
    return records


def make_designs(noise: random.Random) -> tuple[list[str], list[list[float]]]:
    """Sequences from position-dependent shares, and the shares found in them."""
    weights = [[1.0 + 2.5 * (i % 3 == 0) * (i > 30), 0.9, 0.8 + 1.4 * (i < 12), 1.2] for i in range(LENGTH)]
    designs = ["".join(noise.choices("ACGT", w)[0] for w in weights[:-3]) + "ATG" for _ in range(DESIGNS)]
    shares = [[sum(d[i] == letter for d in designs) / DESIGNS for letter in "ACGT"] for i in range(LENGTH)]
    return designs, shares


def around(mean: float, half: float) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def make_evaluation(shares: list[list[float]], metrics: list[dict]) -> dict:
    rng = torch.Generator().manual_seed(0)
    path = 63.1 + 0.8 * torch.randn(DESIGNS, generator=rng, dtype=torch.float64)
    pool = 62.2 + 1.55 * torch.randn(4000, generator=rng, dtype=torch.float64)
    gap = optimality_gap(path, from_samples(pool))
    natural = [[0.24 + 0.004 * (i % 3), 0.25, 0.25, 0.26 - 0.004 * (i % 3)] for i in range(LENGTH)]
    return {
        "alpha": 0.1,
        "designs": DESIGNS,
        "before": {
            "reward": around(5.5814, 0.0467), "judge": around(5.7033, 0.0389), "feasible_fraction": 1.0,
            "pretrained_log_likelihood": around(-68.86, 0.083), "unique_fraction": 1.0, "diversity": 0.7488,
            "novelty": 23.41, "kmer_correlation": 0.9934,
        },
        "after": {
            "reward": around(6.7712, 0.0211), "judge": around(6.5687, 0.0245), "feasible_fraction": 0.998,
            "pretrained_log_likelihood": around(-70.31, 0.141), "unique_fraction": 0.997, "diversity": 0.7021,
            "novelty": 22.87, "kmer_correlation": 0.8127,
        },
        "kl_nats": {"mean": 3.9187, "error": 0.0442},
        "gap": {**dataclasses.asdict(gap), "verdict": gap.verdict},
        "best_of_n": {
            "pool": 1000,
            "equal_calls": {"n": 26, "wanted": 26, "kl_bound_nats": 2.2966, "reward": 6.5919, "judge": 6.4126},
            "equal_kl": {"n": 134, "wanted": 134, "kl_bound_nats": 3.9053, "reward": 6.8823, "judge": 6.5411},
        },
        "evaluation_calls": 2000,
        "position_frequencies": {"before": natural, "after": shares, "alphabet": "ACGT"},
        "cost": {
            "oracle_calls": metrics[-1]["oracle_calls"], "evaluation_calls": 2000,
            "network_evaluations": metrics[-1]["network_evaluations"], "seconds": 151.3, "evaluation_seconds": 12.6,
        },
    }  # fmt: skip


def make_run(path: Path) -> RunFolder:
    """A finished run such as `difftilt finetune utr-mrl` leaves."""
    noise = random.Random(0)
    run = RunFolder(path)
    run.config.write_text(tomli_w.dumps(make_config()), encoding="utf-8")
    metrics = make_metrics(noise)
    designs, shares = make_designs(noise)
    run.append(run.metrics, metrics)
    answers = [{"design": d, "value": 5.6 if i % 40 else None, "reason": None} for i, d in enumerate(designs)]
    for i, answer in enumerate(a for a in answers if a["value"] is None):
        answer["reason"] = "ValueError: holds an upstream ATG" if i % 3 else "returned None"
    run.append(run.oracle, answers)
    run.write_json(run.evaluation, make_evaluation(shares, metrics))
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["id", "sequence", "reward", "judge", "log_weight", "pretrained_log_likelihood"])
    for i, design in enumerate(designs):
        reward = noise.gauss(6.77, 0.34)
        scores = [reward, reward - 0.2 + noise.gauss(0, 0.3), noise.gauss(63, 0.8), noise.gauss(-70.3, 2.3)]
        rows.writerow([f"design-{i + 1}", design, *scores])
    run.samples.write_text(out.getvalue(), encoding="utf-8")
    return run


def edit(run: RunFolder, **changes) -> None:
    """Change top-level entries of ``evaluation.json``; mappings are merged."""
    facts = json.loads(run.evaluation.read_text())
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    run.write_json(run.evaluation, facts)


def page(run: RunFolder) -> str:
    return write_report(run).read_text(encoding="utf-8")


def words(text: str) -> str:
    """What a reader sees, spaces evened out."""
    body = re.sub(r"<(style|head)\b.*?</\1>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def values(text: str) -> list[float]:
    return [float(value) for value in re.findall(r'<data value="([^"]+)">', text)]


class Tags(HTMLParser):
    """Every attribute that could fetch, and whether tags are balanced."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen, self.open, self.links, self.fetched = set(), [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if tag == "a" and name == "href":
                self.links.add(value)
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
                self.fetched.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "utr-ppo")


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return make_run(tmp_path / "utr-ppo")


def dna(run: RunFolder, unseen: float = 0.4821) -> RunFolder:
    """The run with motifs and words, as tasks of DNA store them."""
    config, facts = make_config(), json.loads(run.evaluation.read_text())
    config["task"] |= {
        "motifs": {"TAATCC": "CRX", "TGACTCA": ""}, "second_reference": "native elements",
        "held_out": {"sites_TAATCC": unseen, "kmer6_distance": 0.0779}, "in_training": {"sites_TGACTCA": 0.0233},
    }  # fmt: skip
    for i, when in enumerate(("before", "after")):
        facts[when] |= {"sites_TAATCC": 0.5213 + i, "sites_TGACTCA": 0.0017 + i, "kmer6_distance": 0.0812 + 0.1 * i}
        facts[when] |= {"kmer6_distance_second": 0.1871 + 0.1 * i}
    run.config.write_text(tomli_w.dumps(config), encoding="utf-8")
    run.write_json(run.evaluation, facts)
    return run


def test_motifs_and_words_are_named_and_set_beside_those_of_held_out_designs(run):
    text = write_report(dna(run)).read_text(encoding="utf-8")
    assert {0.5213, 1.5213, 0.0017, 0.0812, 0.1871, 0.2871} <= set(values(text))
    for words in (
        "Sites TAATCC<small>CRX; mean number in a design; held-out designs 0.482</small>",
        "Sites TGACTCA<small>mean number in a design; training designs 0.0233</small>",
        "6-letter words<small>Jensen-Shannon distance to those of the training data, 0 to 1; held-out designs 0.078",
        "6-letter words<small>Jensen-Shannon distance to those of native elements, 0 to 1</small>",
    ):
        assert words in text, words
    assert "kmer6" not in text


def test_a_comparison_shows_how_the_designs_of_each_run_look(tmp_path):
    """The pretrained model's column is there once; a property that one run lacks is a dash."""
    one, two = dna(make_run(tmp_path / "one")), make_run(tmp_path / "two")
    text = compare([one, two])
    section = text[text.index('class="likeness"') :]
    row = re.search(r"Sites TAATCC.*?</tr>", section, re.DOTALL)
    assert row is not None
    assert values(row[0]) == [0.5213, 1.5213]
    assert "–" in row[0]
    row = re.search(r"k-mer correlation.*?</tr>", section, re.DOTALL)
    assert row is not None
    assert values(row[0]) == [0.9934, 0.8127, 0.8127]


def test_numbers_on_the_page_are_those_of_the_files(finished):
    text, facts = page(finished), json.loads(finished.evaluation.read_text())
    shown = values(text)
    for when in ("before", "after"):
        for name in ("reward", "judge", "pretrained_log_likelihood"):
            assert facts[when][name]["mean"] in shown
        for name in ("unique_fraction", "diversity", "novelty", "kmer_correlation"):
            assert facts[when][name] in shown
    for key in ("equal_calls", "equal_kl"):
        assert {facts["best_of_n"][key]["reward"], facts["best_of_n"][key]["judge"]} <= set(shown)
    assert {facts["kl_nats"]["mean"], *(facts["gap"][k] for k in ("gap_nats", "log_z", "log_z_policy"))} <= set(shown)
    assert set(map(float, facts["cost"].values())) <= set(shown)
    gains = [facts["after"][name]["mean"] - facts["before"][name]["mean"] for name in ("reward", "judge")]
    known = {*gains, *_numbers(facts)}
    assert set(shown) <= known


def _numbers(value) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(_numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(_numbers, value))
    return {float(value)} if isinstance(value, int | float) else set()


def test_the_headline_gives_reward_judge_kl_and_gap_in_words(finished):
    text = words(page(finished))
    assert "took the reward of the model's designs from 5.58 (5.53 to 5.63) to 6.77 (6.75 to 6.79)" in text
    assert "the held-out judge, which tuning never saw, moved from 5.70 (5.66 to 5.74) to 6.57 (6.54 to 6.59)" in text
    gap = json.loads(finished.evaluation.read_text())["gap"]
    assert "It spent 3.92 ± 0.04 nats of KL. The gap to the optimum at alpha = 0.1 reads" in text
    assert f"nats, {gap['verdict']}." in text


def test_every_part_of_a_finished_run_is_there(finished):
    text = words(page(finished))
    for part in (
        "Before and after", "Learning curves", "KL spent and distance to the optimum",
        "Do they still look like the data?", "Sequence logo", "Best designs", "Cost", "Infeasible designs",
        "Settings and provenance", "How to cite", "6.39k 12.8k", "oracle calls", "2 min 31 s", "Best of 26",
        "Best of 134", "uehara2024understanding", "uehara2024feedback", "Sample et al. 2019", "version = {0.1.0}",
        "1a2b3c4", "holds an upstream ATG", "25 (2.5 %) got no reward",
    ):  # fmt: skip
        assert part in text, part


def test_nothing_is_fetched_and_nothing_runs(finished):
    text = page(finished)
    tags = Tags(text)
    assert not tags.open
    assert not tags.seen & {"script", "link", "iframe", "object", "embed", "img", "image", "form", "base"}
    assert all(value.startswith("#") for value in tags.fetched)
    assert {link for link in tags.links if not link.startswith("data:text/csv")} == SAFE_LINKS
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_user_text_is_escaped_wherever_it_appears(run):
    attack = '<script>alert("1")</script>'
    config = make_config()
    config["task"] |= {key: f"{attack}{key}" for key in config["task"] if key != "score_unit"}
    config["settings"] |= {"algorithm": attack, "fix": [attack], "task": attack}
    config["provenance"]["command"] = attack
    run.config.write_text(tomli_w.dumps(config))
    run.append(run.oracle, [{"design": attack, "value": None, "reason": f"reason {attack}"}] * 50)
    run.append(run.metrics, [{"step": 201, "reward": 6.0, attack: 3.0}, {"step": 202, "reward": 6.0, attack: 4.0}])
    with run.samples.open("a") as handle:
        csv.writer(handle).writerow([attack, attack, 99.0, 1.0, 0.0, -70.0])
    gap = json.loads(run.evaluation.read_text())["gap"]
    edit(run, gap={**gap, "verdict": f"not certified: {attack}"}, after={attack: 1.0})
    text = page(run)
    assert "script" not in Tags(text).seen
    assert not Tags(text).open
    assert html.unescape(text).count(attack) >= 10
    assert "<script" not in compare([run])


def test_the_download_is_the_file_itself(finished):
    (link,) = (link for link in Tags(page(finished)).links if link.startswith("data:"))
    kind, body = link.split(",", 1)
    assert kind == "data:text/csv;charset=utf-8"
    assert unquote(body).encode() == finished.samples.read_bytes()


def test_best_designs_are_distinct_feasible_and_in_order(run):
    best = "ACGT" * 12 + "AC"
    with run.samples.open("a") as handle:
        handle.write(f"x,{best},9.5,1.25,0,-60\ny,{best},9.5,1.25,0,-60\nz,{best}A,,,0,-60\n")
    text = page(run)
    shown = re.findall(r'<td class="design">([ACGT]+)(.*?)</td><td data-label="reward">([\d.]+)', text)
    assert len(shown) == 50
    assert shown[0][0] == best
    assert "×2" in shown[0][1]
    assert len({design for design, *_ in shown}) == 50
    rewards = [float(reward) for *_, reward in shown]
    assert rewards == sorted(rewards, reverse=True)
    assert best + "A" not in {design for design, *_ in shown}


def test_a_thousand_designs_make_less_than_a_megabyte_and_a_half(finished):
    assert len(page(finished).encode()) < 1_500_000


def test_light_dark_print_and_phone_are_styled(finished):
    text = page(finished)
    for rule in (
        "prefers-color-scheme: dark",
        "@media print",
        "max-width: 640px",
        "width=device-width",
        "color-scheme",
    ):
        assert rule in text
    assert not re.search(r'(fill|stroke)="', text)  # colours come from the style sheet alone


def test_reading_leaves_the_other_files_alone(run):
    with run.metrics.open("a") as handle:
        handle.write('{"step": 201, "rew')  # a line that its writer has not finished
    before = {file.name: file.read_bytes() for file in run.path.iterdir()}
    assert "damaged" not in page(run)
    after = {file.name: file.read_bytes() for file in run.path.iterdir() if file != run.report}
    assert after == before


@pytest.mark.parametrize("missing", ["config", "metrics", "oracle", "samples"])
def test_a_missing_file_costs_its_part_only(run, missing):
    getattr(run, missing).unlink()
    text = words(page(run))
    assert "Before and after" in text
    assert "How to cite" in text
    gone = {
        "config": "[settings]",
        "metrics": "Learning curves",
        "oracle": "in oracle.jsonl",
        "samples": "Best designs",
    }
    assert gone[missing] not in text


def test_an_interrupted_run_says_so(run):
    run.evaluation.unlink()
    run.samples.unlink()
    run.rewind_metrics(37)
    text = words(page(run))
    assert "Unfinished run. There is no evaluation yet: it stands at step 37 of 200" in text
    assert "Learning curves" in text
    assert "Before and after" not in text
    assert f"{128 * 37 - 5:,}" in text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_that_has_hardly_begun_still_gives_a_page(run, steps):
    run.evaluation.unlink()
    run.samples.unlink()
    run.oracle.unlink()
    run.rewind_metrics(steps)
    assert "Unfinished run." in words(page(run))


def test_damaged_files_are_named_and_the_rest_is_shown(run):
    run.config.write_text("[settings\n")
    run.samples.write_text("name,reward\nx,1\n")
    lines = run.metrics.read_text().splitlines()
    run.metrics.write_text("\n".join([*lines[:5], "{oops", *lines[5:]]) + "\n")
    text = words(page(run))
    assert "config.toml could not be read" in text
    assert "metrics.jsonl, line 6 is damaged" in text
    assert "samples.csv has no column" in text
    assert "Before and after" in text


@pytest.mark.parametrize("wrong", ['{"before": 3, "gap": [1], "kl_nats": null, "best_of_n": "x"}', "[1, 2]", "{"])
def test_an_evaluation_of_another_shape_is_no_crash(run, wrong):
    run.evaluation.write_text(wrong)
    assert "Unfinished run." in words(page(run))


def test_a_folder_without_a_run_is_a_state_error(tmp_path):
    with pytest.raises(StateError, match=r"expected a run folder .*; got .*; give") as caught:
        write_report(RunFolder(tmp_path / "empty"))
    assert "\n" not in str(caught.value)
    with pytest.raises(StateError):
        comparison_rows([RunFolder(tmp_path / "empty")])


def test_without_a_judge_the_page_warns(run):
    nothing = {"mean": None, "low": None, "high": None}
    edit(run, before={"judge": nothing}, after={"judge": nothing})
    text = words(page(run))
    assert "No held-out judge." in text
    assert "no held-out judge was asked" in text


@pytest.mark.parametrize(
    ("judge", "warning"),
    [
        (6.57, "The reward rose more than the judge."),
        (5.70, "Over-optimisation: the judge did not follow."),
        (5.30, "Over-optimisation: the judge did not follow."),
        (6.89, None),
        (7.40, None),
    ],
)
def test_over_optimisation_is_told_from_progress(run, judge, warning):
    edit(run, after={"judge": around(judge, 0.02)})
    text = words(page(run))
    for known in ("The reward rose more than the judge.", "Over-optimisation: the judge did not follow."):
        assert (known in text) == (known == warning)


def test_scales_are_not_compared_when_the_reward_is_the_users_own(run):
    config = make_config()
    config["settings"]["reward"] = "scorer.py:load"
    config["task"]["reward_name"] = "scorer.py:load"
    run.config.write_text(tomli_w.dumps(config))
    text = words(page(run))
    assert "The reward rose more than the judge." not in text
    assert "Both in mean ribosome load" not in text


def test_a_yardstick_cut_by_the_pool_says_so(run):
    best = json.loads(run.evaluation.read_text())["best_of_n"]
    edit(run, best_of_n={"equal_kl": {**best["equal_kl"], "n": 250, "wanted": 812}})
    text = words(page(run))
    assert "Best of 250" in text
    assert "N = 812 was due, cut by the pool of 1,000, so the true yardstick is higher" in text


def test_best_of_n_is_named_where_it_wins(run):
    best = json.loads(run.evaluation.read_text())["best_of_n"]
    assert "Best-of-N does better" not in words(page(run))
    edit(run, best_of_n={"equal_calls": {**best["equal_calls"], "judge": 6.63}})
    assert "The judge gives best-of-26 6.63 and these designs 6.57" in words(page(run))


def test_an_uncertified_gap_gives_its_reason_and_the_failed_condition(run):
    reason = "ESS is 4.0% of the rollouts, below 10%"
    edit(run, gap={"certified": False, "reason": reason, "verdict": f"not certified: {reason}", "ess_fraction": 0.04})
    text = words(page(run))
    assert f"✗ not certified: {reason}" in text
    assert "ESS of the policy's path weights 4.0 % at least 10.0 % ✗ fails" in text


def test_an_infinite_gap_is_not_shown_as_a_number(run):
    edit(run, gap={"gap_nats": None, "error": None, "certified": False, "reason": "fewer than two feasible designs"})
    assert "– nats gap" in words(page(run))
    assert "nats from the optimum" not in words(page(run))


def test_the_kl_budget_is_drawn_and_alpha_has_a_curve(run):
    config = make_config()
    config["settings"]["kl_budget"] = 8.0
    run.config.write_text(tomli_w.dumps(config))
    records = run.read(run.metrics)
    run.metrics.unlink()
    run.append(run.metrics, [{**record, "alpha": 0.1 + 0.001 * record["step"]} for record in records])
    text = page(run)
    assert 'class="target"' in text
    assert "alpha, reward units per nat" in text


def test_comparison_rows_are_plain_numbers(finished, run):
    run.evaluation.unlink()
    whole, partial = comparison_rows([finished, run])
    facts = json.loads(finished.evaluation.read_text())
    assert whole["run"] == "utr-ppo"
    assert whole["method"] == "PPO"
    assert (whole["judge"], whole["judge_low"]) == (facts["after"]["judge"]["mean"], facts["after"]["judge"]["low"])
    assert (whole["kl_nats"], whole["gap_nats"]) == (facts["kl_nats"]["mean"], facts["gap"]["gap_nats"])
    assert (whole["unique"], whole["oracle_calls"], whole["seconds"]) == (0.997, 25572.0, 151.3)
    assert (partial["judge"], partial["verdict"], partial["alpha"]) == (None, "not evaluated", 0.1)
    assert whole.keys() == partial.keys()


def test_the_comparison_page_shows_every_run_and_fetches_nothing(finished, run, tmp_path):
    edit(run, after={"judge": around(6.4, 0.03)}, kl_nats={"mean": 2.1, "error": 0.05})
    path = write_comparison([finished, run], tmp_path / "out" / "compare.html")
    text = path.read_text(encoding="utf-8")
    tags = Tags(text)
    assert not tags.open
    assert not tags.links
    assert not tags.fetched
    assert {6.4, 2.1, 6.5687, 3.9187} <= set(values(text))
    assert "best of 134" in text
    with pytest.raises(ConfigError):
        compare([])


def test_runs_toward_different_rewards_are_not_on_one_scale(finished, run):
    assert "Different rewards." not in compare([finished, run])
    config = make_config()
    config["task"]["reward_name"] = "scorer.py:load"
    run.config.write_text(tomli_w.dumps(config))
    text = compare([finished, run])
    assert "Different rewards." in text
    assert "scorer.py:load" in text
