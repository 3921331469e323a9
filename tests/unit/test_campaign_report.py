"""A campaign's page says what its history says, whatever is missing, claims no more, and changes nothing."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from campaign_parts import begin, letters, results, rows
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings, Design, History, Measurement
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.campaigns.strategies import strategy
from difftilt.errors import ConfigError
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.report.campaign import campaign_page, corrections, write_campaign_report
from difftilt.report.campaign_lessons import coverage_verdict, ranks_verdict
from difftilt.report.campaign_rounds import Agreement, alphabet_of, digits, noise, views
from difftilt.report.campaign_words import is_near

ATTACK = '<script>alert("1")</script>'
FAILURES = ("no growth", "no expression")


def words(text: str) -> str:
    """What a reader sees, spaces evened out."""
    body = re.sub(r"<(style|head)\b.*?</\1>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def numbers(text: str) -> list[float]:
    return [float(value) for value in re.findall(r'<data value="([^"]+)">', text)]


def section(text: str, name: str) -> str:
    """A section of the page; empty where there is none."""
    found = re.search(rf'<section id="{name}">.*?</section>', text, re.S)
    return found.group(0) if found else ""


def picking(*candidates: Candidate, model: str = "round", **facts: Any) -> Callable[..., Proposal]:
    """A strategy of given designs."""
    return lambda history, n, rng: Proposal(list(candidates), f"{model}-{history.next_round}", facts)


def lived(place: str | Path, folder: Path) -> Campaign:
    """Three measured rounds with replicates, failures, a correction and a withdrawal, and a pending plate."""
    folder.mkdir(exist_ok=True)
    campaign = begin(str(place), budget=40, batch=8, unit="nM")
    rng = torch.Generator().manual_seed(0)
    for number in range(1, 4):
        plate = campaign.propose(proposer=letters)
        told: list[dict[str, Any]] = []
        for i, design in enumerate(plate):
            if i in (2, 5):
                told.append({"id": design.id, "status": f"failed: {FAILURES[number % 2]}"})
                continue
            value = 0.1 * number + (design.mean or 0.0) + 0.05 * torch.randn(1, generator=rng).item()
            told += [{"id": design.id, "value": value + 0.01 * r, "replicate": str(r)} for r in range(1 + i % 3)]
        campaign.record(told)
    campaign.record([{"id": "d00001", "value": 0.123, "replicate": "0"}], correct=True)
    plate = campaign.propose(proposer=letters)
    campaign.withdraw([plate[1].id], "no oligo")
    return campaign


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    folder = tmp_path_factory.mktemp("lived")
    return lived(folder / "lab", folder / "files")


@pytest.fixture(scope="module")
def history(campaign: Campaign) -> History:
    return campaign.history()


@pytest.fixture(scope="module")
def page(history: History) -> str:
    return campaign_page(history)


class Tags(HTMLParser):
    """Tags, links and whatever could fetch; balanced or it fails."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.open: list[str] = []
        self.fetched: set[str | None] = set()
        self.ids: set[str | None] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
                self.fetched.add(value)
            if name == "id":
                self.ids.add(value)
            assert not name.startswith("on"), f"{name} would run"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_headline_and_the_rounds_say_what_the_history_says(history: History, page: str) -> None:
    best = history.best
    assert best is not None
    text, counts = words(page), history.counts
    told = f"{best.id} of round {best.round} is the best of {counts['measured']} measured designs: {best.value:.3g} nM"
    assert told in text.replace("\xa0", " ")
    assert f"{history.spent} of 40 designs are paid for, {counts['pending']} of them pending; " in text
    assert f"{history.remaining} are left." in text
    table = section(page, "values")
    for number in range(1, 5):
        own = [design for design in history.designs if design.round == number]
        values = [design.value for design in own if design.value is not None]
        if values:
            assert sum(values) / len(values) in [pytest.approx(shown) for shown in numbers(table)]
        assert f'measured">{len(values)} of {len(own)}<' in table
    assert numbers(table)[-1] == best.value


def test_the_best_designs_are_in_order_with_the_means_of_their_replicates(history: History, page: str) -> None:
    pattern = r'<td data-label="id">(d\d+)</td>.*?<td data-label="value"><data value="([^"]+)">'
    shown = re.findall(pattern, section(page, "designs"))
    expected = sorted(((design.value, design.id) for design in history.in_state("measured")), key=lambda pair: -pair[0])
    assert [(float(value), name) for name, value in shown] == expected[:25]


def test_the_pending_plate_is_told_with_its_reasons(history: History, page: str) -> None:
    plate = section(page, "plate")
    assert f"Next plate: {history.counts['pending']} pending designs" in plate
    lines = re.findall(r'"rank">(.*?)<.*?"design">(.*?)<.*?id">(.*?)<.*?"reason">(.*?)<', plate)
    assert lines == [(d.well, d.design, d.id, d.reason) for d in history.in_state("pending")]
    for design in history.in_state("pending"):
        assert {design.mean, design.std} <= set(numbers(plate))


def test_failures_withdrawals_and_corrections_are_told(history: History, page: str) -> None:
    lines = re.findall(r'<th scope="row">(.*?)</th><td>(\d+)</td><td>(.*?)</td>', section(page, "failures"))
    assert set(lines) == {(FAILURES[0], "2", "2"), (FAILURES[1], "4", "1, 3")}
    changes = section(page, "changes")
    (gone,) = history.in_state("withdrawn")
    assert gone.id in changes
    assert "no oligo" in changes
    (change,) = corrections(history)
    assert (change.design.id, change.new.value) == ("d00001", 0.123)
    assert {change.old.value, change.new.value} <= set(numbers(changes))
    assert change.old.value not in numbers(section(page, "designs") + section(page, "values"))


def test_what_was_spent_adds_up_and_free_calls_stand_apart(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"))
    facts = {"surrogate_calls": 2048, "drawn": 500, "dropped_known": 7, "seconds_fit": 1.5, "seconds_tune": 60.0}
    for _ in range(2):
        (design,) = campaign.propose(proposer=picking(Candidate("ACGT" * (campaign.status().rounds + 1)), **facts))
        campaign.record([{"id": design.id, "value": 1.0}, {"id": design.id, "value": 2.0, "replicate": "2"}])
    text = words(section(campaign_page(campaign.history()), "spent"))
    for told in (
        "2 of 24",
        "4 in 2 files",
        "surrogate, free 4,096",
        "drawn, free 1,000",
        "proposed before 14",
        "2 min 3",
    ):
        assert told in text, told
    assert "to be avoided" not in text
    assert "22 left" in text


def test_a_failed_or_pending_design_is_never_drawn_as_a_number(history: History, page: str) -> None:
    drawing = re.search(r"<svg.*?</svg>", section(page, "values"), re.S)
    assert drawing is not None
    values = [value for design in history.designs for value in design.values]
    dots = re.findall(r'<circle class="mark reward" cx="([\d.]+)" cy="([\d.]+)"', drawing.group(0))
    crosses = re.findall(r'class="cross" d="M[\d.]+ ([\d.]+).*?<title>(.*?)</title>', drawing.group(0))
    circles = re.findall(r'class="mark yardstick" cx="[\d.]+" cy="([\d.]+)"', drawing.group(0))
    assert len(dots) == len(values)
    assert len(crosses) == history.counts["failed"]
    assert all(re.fullmatch(r"d\d+: failed, no \w+", title) for _, title in crosses)
    assert len(circles) == history.counts["pending"]
    lowest = max(float(y) for _, y in dots)
    assert min(float(y) for y, _ in crosses) > lowest
    assert min(map(float, circles)) > lowest
    for view, panel in zip(views(history), section(page, "rounds").split("<h3")[1:], strict=True):
        assert panel.count('class="mark reward"') == view.agreement.pairs == len(view.measured)


def test_the_line_of_the_best_rises_to_the_best_and_never_falls(history: History, page: str) -> None:
    drawing = re.search(r"<svg.*?</svg>", section(page, "values"), re.S)
    assert drawing is not None
    path = re.search(r'class="curve" d="([^"]+)"', drawing.group(0))
    assert path is not None
    levels = [float(point.split()[1]) for point in path.group(1)[1:].split("L")]
    assert len(levels) == 2 * 3
    assert levels == sorted(levels, reverse=True)
    once = {d.id: d.values[0] for d in history.in_state("measured") if len(d.values) == 1}
    dots = re.findall(r'cy="([\d.]+)" r="[\d.]+"><title>(d\d+):', drawing.group(0))
    pairs = [(once[name], float(y)) for y, name in dots if name in once]
    (low, high), (bottom, top) = (sorted(pairs)[i][0] for i in (0, -1)), (sorted(pairs)[i][1] for i in (0, -1))
    for view, level in zip(views(history), levels[::2], strict=False):
        assert view.best is not None
        value = view.best.value or 0.0
        assert level == pytest.approx(bottom + (value - low) / (high - low) * (top - bottom), abs=0.05)


def test_the_best_stays_the_best_until_a_better_one_comes(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"))
    for value in (0.5, 0.3, 0.4, 0.6):
        (design,) = campaign.propose(1, proposer=letters)
        campaign.record([{"id": design.id, "value": value}])
    history = campaign.history()
    assert [view.best and view.best.value for view in views(history)] == [0.5, 0.5, 0.5, 0.6]
    text = words(section(campaign_page(history), "rounds"))
    said = (
        "with 0.300; d00001 of round 1",
        "with 0.400; d00001 of round 1",
        "with 0.600, above d00001 of round 1, 0.500.",
    )
    assert all(sentence in text for sentence in said)
    path = re.search(r'class="curve" d="M([^"]+)"', drawn(campaign_page(history), "measured value"))
    assert path is not None
    levels = [float(point.split()[1]) for point in path.group(1).split("L")]
    assert len(set(levels[:6])) == 1
    assert levels[5] > levels[6] == levels[7]


def test_intervals_and_ranks_are_those_of_the_measurements(tmp_path: Path) -> None:
    """By hand: model std 0.8 = 2 * sqrt(0.4^2 + 0^2) / 2 tempered by 2, noise 0.6: one measurement's std is 1."""
    campaign = begin(str(tmp_path / "lab"))
    errors = [0.6, -0.6, 0.7, -1.6, 1.7, -5.0]
    candidates = [Candidate("ACGTAC"[i:] + "ACGTAC"[:i] + "T" * i, mean=10.0 * i, std=0.8) for i in range(len(errors))]
    held_out = {"rows": 12, "spearman": 0.25, "coverage_50": 0.5, "coverage_90": 0.75}
    plate = campaign.propose(
        len(errors),
        proposer=picking(*candidates, factor=2.0, misfit=0.0, noise=0.6, held_out=held_out, kl_to_pretrained=1.5),
    )
    campaign.record([
        {"id": design.id, "value": (design.mean or 0.0) + error} for design, error in zip(plate, errors, strict=True)
    ])  # fmt: skip
    history = campaign.history()
    (view,) = views(history)
    assert (view.agreement.pairs, view.agreement.within_50, view.agreement.within_90) == (6, 2, 4)
    assert view.agreement.spearman == pytest.approx(1.0)
    assert view.agreement.bias is not None
    assert view.agreement.bias.mean == pytest.approx(sum(errors) / 6)
    text = words(campaign_page(history))
    assert "4 of 6 lie within their 90 % intervals." in text
    assert "Predicted and measured ranks correlate by 1.00: better than chance." in text
    assert "Its policy lies 1.5 nats from the pretrained one." in text


def test_a_campaign_of_seiko_tells_what_the_next_round_was_told(tmp_path: Path) -> None:
    """Facts have the names under which strategies keep them, and agreement is what the next round calls last_round."""
    problem = random_pairwise(5, 4, alpha=0.5, target_kl=2.0, seed=4)
    policy = corrected(problem.pretrained, hidden=32)
    tuning = Tuning(alpha=0.5, beta=0.5, updates=2, paths=16)
    campaign = begin(
        str(tmp_path / "lab"),
        budget=60,
        batch=12,
        strategy="seiko-ucb",
        tuning=tuning,
        picking=Picking(surrogate="linear"),
    )
    for left in (2, 1, 0):
        plate = campaign.propose(proposer=strategy("seiko-ucb")(policy, campaign.folder))
        if left:
            values = torch.as_tensor(problem.reward([design.design for design in plate])).tolist()
            campaign.record([{"id": d.id, "value": v} for d, v in zip(plate, values, strict=True)])
    history = campaign.history()
    found, told = views(history)[1].agreement, history.rounds[2].facts["last_round"]
    assert found.pairs == told["rows"] == 12
    assert (found.within_50, found.within_90) == (12 * told["coverage_50"], 12 * told["coverage_90"])
    assert found.spearman == told["spearman"]
    text = campaign_page(history)
    facts = [entry.facts for entry in history.rounds[1:]]
    shown = set(numbers(text))
    for name in ("surrogate_calls", "drawn", "seconds_fit"):
        assert name in facts[0]
    assert sum(entry["surrogate_calls"] for entry in facts) in shown
    assert {entry["held_out"][key] for entry in facts for key in ("spearman", "coverage_90")} <= shown
    said = words(section(text, "rounds"))
    assert f"{found.within_90} of 12 lie within their 90 % intervals" in said
    assert said.count("nats from the pretrained one") == said.count("from that of the round before") == 2
    assert "after learning from 24 results" in said
    assert "glyph-" in text


def test_without_a_stated_spread_there_is_no_coverage(history: History, page: str) -> None:
    assert {view.agreement.within_90 for view in views(history)} == {None}
    assert "intervals:" not in words(page)
    assert "lie within" not in words(page)


def drawn(text: str, label: str) -> str:
    """The drawing with a label."""
    found = re.search(rf'<svg [^>]*aria-label="{label}.*?</svg>', text, re.S)
    assert found is not None
    return found.group(0)


def test_drawings_put_designs_where_their_numbers_are(tmp_path: Path) -> None:
    """Predictions that come true lie on the diagonal; the others above it where the value was higher."""
    campaign = begin(str(tmp_path / "lab"), budget=10, batch=6)
    means = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    texts = ["ACGT"[i % 4] * 3 + "ACGT"[i // 4] for i in range(12)]
    first = campaign.propose(proposer=picking(*[Candidate(texts[i], mean=m, std=0.5) for i, m in enumerate(means)]))
    values = [0.0, 1.0, 2.0, 3.5, 3.5]
    campaign.record([{"id": d.id, "value": v} for d, v in zip(first, values, strict=False)])
    campaign.record([{"id": first[5].id, "status": "failed"}])
    campaign.propose(proposer=picking(*[Candidate(texts[6 + i], mean=m, std=0.25) for i, m in enumerate(means[:4])]))
    text = campaign_page(campaign.history())
    scatter = drawn(text, "Round 1: measured")
    corner = re.search(r'class="target" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', scatter)
    assert corner is not None
    left, bottom, right, top = map(float, corner.groups())
    assert right - left == bottom - top
    dots = re.findall(r'class="mark reward" cx="([\d.]+)" cy="([\d.]+)"', scatter)
    above = [(bottom - float(y)) - (float(x) - left) for x, y in dots]
    assert above[:3] == [pytest.approx(0.0, abs=0.02)] * 3
    assert above[3] == pytest.approx(-above[4], abs=0.02)
    assert above[3] > 5
    plate = drawn(text, "predicted value of the pending designs")
    marks = [float(y) for y in re.findall(r'class="mark judge" d="M[\d.]+ ([\d.]+)', plate)]
    bars = re.findall(r'class="whisker" x1="[\d.]+" y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"', plate)
    steps = [a - b for a, b in itertools.pairwise(marks)]
    assert steps == [pytest.approx(steps[0], abs=0.02)] * 3
    assert [float(low) - float(high) for low, high in bars] == [pytest.approx(steps[0] / 2, abs=0.02)] * 4
    dashed = re.search(r'class="target" x1="[\d.]+" y1="([\d.]+)"', plate)
    assert dashed is not None
    middle = (float(bars[3][0]) + float(bars[3][1])) / 2
    assert middle - float(dashed.group(1)) == pytest.approx(0.5 * steps[0], abs=0.02), "the best, 3.5, above 3.0"
    wells = re.findall(r'class="well taken".*?fill-opacity="([\d.]+)"><title>(\w+): ', drawn(text, "wells"))
    assert [well for _, well in wells] == ["A1", "A2", "A3", "A4"]
    assert [float(full) for full, _ in wells] == [0.15, 0.43, 0.72, 1.0]
    bar = re.findall(r'class="part (\w+)".*?width="([\d.]+)"', drawn(text, "Budget"))
    total = sum(float(width) for _, width in bar)
    wide = {kind: pytest.approx(10 * float(width) / total, abs=0.001) for kind, width in bar}
    assert wide == {"reward": 5, "failed": 1, "pending": 4}
    assert total == pytest.approx(436, abs=0.02)


def test_shares_over_rounds_are_those_of_the_rounds(tmp_path: Path) -> None:
    """All fail in the first round and none in the second: the line falls from the top of its axis to 0."""
    campaign = begin(str(tmp_path / "lab"))
    failed(campaign)
    campaign.record([{"id": d.id, "value": 1.0} for d in campaign.propose(proposer=letters)])
    drawing = drawn(campaign_page(campaign.history()), "Failed, share of results")
    dots = re.findall(r"<circle[^>]*cy=\"([\d.]+)\"", drawing)
    ticks = re.findall(r'<text class="tick" x="[\d.]+" y="([\d.]+)" text-anchor="end">([\d.]+)</text>', drawing)
    level = {float(value): float(y) - 3.5 for y, value in ticks}
    assert [float(y) for y in dots] == [pytest.approx(level[1.0], abs=0.02), pytest.approx(level[0.0], abs=0.02)]


@pytest.mark.parametrize("facts", [{"factor": "wide"}, {"factor": None}, {"factor": 0.0}, {"held_out": 3, "rows": "x"}])
def test_facts_of_another_shape_are_no_crash(tmp_path: Path, facts: dict[str, Any]) -> None:
    campaign = begin(str(tmp_path / "lab"))
    wanted = {"factor": 1.0, "misfit": 0.1, "noise": 0.1} | facts
    (design,) = campaign.propose(1, proposer=picking(Candidate("ACGT", mean=0.5, std=0.1), **wanted))
    campaign.record([{"id": design.id, "value": 0.7}])
    assert "too few to judge the predictions" in words(campaign_page(campaign.history()))


CLAIMS = ("better than chance", "worse than chance", "stands out", "as good as the best", "too sure", "above that of")
"""What takes data to say."""


def unpredicted(n: int, *designs: str) -> Callable[..., Proposal]:
    return picking(*[Candidate(design) for design in designs[:n]], model="p_pre")


def nothing(campaign: Campaign) -> None:
    pass


def proposed(campaign: Campaign) -> None:
    campaign.propose(proposer=letters)


def failed(campaign: Campaign) -> None:
    campaign.record([{"id": d.id, "status": "failed: no growth"} for d in campaign.propose(proposer=letters)])


def one(campaign: Campaign) -> None:
    (design,) = campaign.propose(1, proposer=unpredicted(1, "ACGT"))
    campaign.record([{"id": design.id, "value": 0.5}])


def two_rounds_of_one(campaign: Campaign) -> None:
    for value in (0.5, 0.9):
        (design,) = campaign.propose(1, proposer=letters)
        campaign.record([{"id": design.id, "value": value}])


def equal(campaign: Campaign) -> None:
    for _ in range(2):
        campaign.record([{"id": d.id, "value": 0.0} for d in campaign.propose(proposer=letters)])


def withdrawn(campaign: Campaign) -> None:
    campaign.withdraw([design.id for design in campaign.propose(proposer=letters)], "never made")


def molecules(campaign: Campaign) -> None:
    plate = campaign.propose(4, proposer=unpredicted(4, "[C][O]", "[C][C][O]", "[N]", "images/1.png"))
    campaign.record([{"id": design.id, "value": i / 7} for i, design in enumerate(plate)])


def huge(campaign: Campaign) -> None:
    for sign in (1, -1):
        told = [
            {"id": d.id, "value": sign * (1 + r) * 10.0 ** (90 + i), "replicate": str(r)}
            for i, d in enumerate(campaign.propose(proposer=letters))
            for r in range(2)
        ]
        campaign.record(told)


@pytest.mark.parametrize(
    ("life", "said", "parts"),
    [
        (nothing, "Nothing was proposed yet; the budget is 24 designs.", set()),
        (proposed, "Nothing was measured yet. 4 of 24 designs are paid for, 4 of them pending", {"rounds", "plate"}),
        (failed, "Nothing has a value yet: all 4 designs with a result failed.", {"rounds", "failures"}),
        (one, "d00001 of round 1 is the only measured design: 0.500, measured once.", {"rounds", "designs"}),
        (two_rounds_of_one, "The best was measured once.", {"rounds", "designs"}),
        (equal, "Predictions or values do not vary", {"rounds", "designs", "curves"}),
        (withdrawn, "0 of 24 designs are paid for; 24 are left.", {"rounds", "changes"}),
        (molecules, "d00004 of round 1 is the best of 4 measured designs: 0.429", {"rounds", "designs"}),
        (huge, "measured designs", {"rounds", "designs", "curves"}),
    ],
)
def test_a_campaign_that_lacks_something_gives_a_sensible_page(
    tmp_path: Path, life: Callable[[Campaign], None], said: str, parts: set[str]
) -> None:
    campaign = begin(str(tmp_path / "lab"))
    life(campaign)
    text = campaign_page(campaign.history())
    tags = Tags(text)
    assert not tags.open
    assert said in words(text)
    every = {"rounds", "plate", "designs", "curves", "failures", "changes"}
    assert {part for part in every if section(text, part)} == parts
    assert {link for link in tags.fetched if link and not link.startswith("#glyph")} <= {
        f"#{name}" for name in tags.ids
    }
    if life not in (equal, huge):
        assert not [claim for claim in CLAIMS if claim in words(text)]
    assert "nan" not in words(text).lower()
    assert "None" not in words(text)


def test_designs_that_are_not_letters_have_no_logo(tmp_path: Path) -> None:
    for name, texts, there in (("a", ["ACGT", "CCCC", "GGGG", "ACCC", "TTTT"], True), ("b", [*"12345"], False)):
        campaign = begin(str(tmp_path / name))
        campaign.propose(5, proposer=unpredicted(5, *texts))
        assert ("glyph-" in campaign_page(campaign.history())) == there


def test_the_alphabet_is_the_smallest_that_holds_all_letters() -> None:
    def of(*texts: str) -> str | None:
        return alphabet_of([Design(i, text, 1, "m", "A1", None, None, "") for i, text in enumerate(texts)])

    assert of("ACC", "GGG") == "ACGT"
    assert of("ACU", "GGG") == "ACGU"
    assert of("MKV", "AAA") == "ACDEFGHIKLMNPQRSTVWY"
    assert (of("ACGT", "ACG"), of("acgt"), of("[C]"), of()) == (None, None, None, None)


def measured(*values: float) -> Design:
    every = tuple(Measurement(i, str(i), v, None, None, "f", 1, None, "") for i, v in enumerate(values))
    return Design(1, "A", 1, "m", "A1", None, None, "", every)


def test_the_noise_is_pooled_over_replicates() -> None:
    designs = [measured(1.0, 3.0), measured(0.0, 3.0, 6.0), measured(100.0)]
    assert noise(designs) == (pytest.approx(math.sqrt((2 + 18) / 3)), 2)
    assert noise(designs[:1] * 2) is None, "two replicates to spare are too few"


def test_designs_within_the_noise_of_the_best_are_counted(tmp_path: Path) -> None:
    assert is_near(measured(1.0), measured(0.73), 0.1)  # 1.96 * 0.1 * sqrt(2) = 0.277
    assert not is_near(measured(1.0), measured(0.72), 0.1)
    assert is_near(measured(1.0, 1.0), measured(0.805, 0.805), 0.1)  # 0.196
    assert not is_near(measured(1.0, 1.0), measured(0.80, 0.80), 0.1)
    campaign = begin(str(tmp_path / "lab"))
    plate = campaign.propose(proposer=letters)
    for i, (first, second) in enumerate(((0.9, 1.1), (0.8, 1.0), (0.1, 0.3), (0.0, 0.2))):
        campaign.record([{"id": plate[i].id, "value": v, "replicate": str(v)} for v in (first, second)])
    text = words(campaign_page(campaign.history()))
    assert "By that noise alone 1 other design cannot be told from d00001." in text


@pytest.mark.parametrize(
    ("within", "n", "share", "said"),
    [
        (18, 20, 0.9, ""),
        (15, 20, 0.9, ""),  # P(K <= 15) = 0.043
        (14, 20, 0.9, "too narrow"),  # 0.011
        (0, 2, 0.9, "too narrow"),  # 0.01
        (1, 2, 0.9, ""),
        (35, 35, 0.9, ""),  # P(K = 35) = 0.025 < 0.0251
        (40, 40, 0.9, "wider"),  # 0.015
        (3000, 3000, 0.9, "wider"),
        (2700, 3000, 0.9, ""),
    ],
)
def test_intervals_are_blamed_only_where_chance_is_no_explanation(within: int, n: int, share: float, said: str) -> None:
    verdict = coverage_verdict(within, n, share)
    assert bool(verdict) == bool(said)
    assert verdict.startswith(said)


@pytest.mark.parametrize(
    ("rho", "n", "said"),
    [(1.0, 3, "chance"), (1.0, 5, "chance"), (1.0, 6, "better"), (0.5, 17, "chance"), (0.5, 18, "better"),
     (-0.5, 18, "worse"), (-0.1, 90, "chance")],
)  # fmt: skip
def test_ranks_are_praised_only_beyond_chance(rho: float, n: int, said: str) -> None:
    verdict = ranks_verdict(Agreement(n, rho, None, None, None))
    assert verdict.startswith({"chance": f"with {n} pairs no different", "better": "better", "worse": "worse"}[said])


def test_a_round_is_compared_only_where_its_interval_allows(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"), budget=16)
    for base in (0.0, 0.01, 5.0):
        plate = campaign.propose(proposer=letters)
        campaign.record([{"id": d.id, "value": base + 0.1 * i} for i, d in enumerate(plate)])
    text = words(campaign_page(campaign.history()))
    assert "Its mean cannot be told from that of round 1 (difference 0.0 ± 0.3)" in text
    assert "Its mean lies 5.0 ± 0.3 above that of round 2." in text


def test_values_that_differ_little_get_the_digits_that_show_it(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"))
    plate = campaign.propose(proposer=letters)
    campaign.record([{"id": d.id, "value": 1000 + 0.1 * i} for i, d in enumerate(plate)])
    assert digits(campaign.history()) == 6
    assert "1,000.30" in words(campaign_page(campaign.history()))


def test_everything_that_people_typed_is_escaped(tmp_path: Path) -> None:
    settings = CampaignSettings(name="lab", task=ATTACK, strategy=ATTACK, budget=9, batch=4, unit=ATTACK)
    campaign = Campaign.create(str(tmp_path / "lab"), settings)
    candidates = [Candidate(f"{ATTACK}{i}", mean=0.1, std=0.1, reason=ATTACK) for i in range(4)]
    facts = {"factor": ATTACK, ATTACK: ATTACK}
    plate = campaign.propose(proposer=picking(*candidates, model=ATTACK, **facts))
    campaign.record([
        {"id": plate[0].id, "value": 0.5, "replicate": ATTACK},
        {"id": plate[1].id, "status": "failed", "reason": ATTACK},
    ])  # fmt: skip
    campaign.record([{"id": plate[0].id, "value": 0.7, "replicate": ATTACK}], correct=True)
    campaign.withdraw([plate[2].id], ATTACK)
    text = campaign_page(campaign.history())
    tags = Tags(text)
    assert "script" not in tags.seen
    assert not tags.open
    assert html.unescape(text).count(ATTACK) >= 15
    assert "<script" not in text


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    tags = Tags(page)
    assert not tags.open
    assert not tags.seen & {"script", "link", "iframe", "object", "embed", "img", "image", "form", "base"}
    assert all(value and value.startswith("#") for value in tags.fetched)
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_it_looks_like_the_other_pages(page: str) -> None:
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 640px", "width=device-width"):
        assert rule in page
    assert not re.search(r'(fill|stroke)="', page)  # colours come from the style sheet alone


def test_the_same_history_gives_the_same_bytes_and_stays_as_it_is(tmp_path: Path) -> None:
    campaign = lived(tmp_path / "lab", tmp_path / "files")
    before, files = rows(campaign), sorted(path.name for path in (tmp_path / "lab").iterdir())
    first = write_campaign_report(campaign.history(), tmp_path / "one.html")
    again = write_campaign_report(Campaign.open(tmp_path / "lab").history(), tmp_path / "two.html")
    assert first.read_bytes() == again.read_bytes()
    assert rows(campaign) == before
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == files
    campaign.record(results(tmp_path / "more.csv", {campaign.history().in_state("pending")[0].id: 0.5}))
    assert write_campaign_report(campaign.history(), first).read_bytes() != again.read_bytes()


def test_every_server_gives_the_page(place: str, tmp_path: Path) -> None:
    assert "Next plate" in campaign_page(lived(place, tmp_path / "files").history())


def test_a_page_that_cannot_be_written_says_so(history: History, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        write_campaign_report(history, tmp_path / "file" / "report.html")
