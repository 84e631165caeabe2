"""The HTML report in a real browser: what it shows, against the files it was made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.sites import write_sites
from sparsehyper.lab.report.html import write_html
from sparsehyper.lab.report.results import describe_results
from sparsehyper.lab.runs import (
    DataConfig,
    Experiment,
    adapt_run,
    change_tasks,
    describe_run,
    parse_method,
    run_experiment,
)
from sparsehyper.training import TrainConfig

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium; apt-get install chromium"
)
sync_api = pytest.importorskip("playwright.sync_api")

DOCS = Path(__file__).parents[2] / "docs" / "results"
HOSTILE = "<img src=x onerror=alert(1)>"
LONG = "word " * 20 + "w" * 200
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 740}, "is_mobile": True}


def run_of(directory, tasks=None, *, data=None, method="sparse", steps=20, **settings):
    """A small finished run on the digits, or on other ``data``."""
    training = TrainConfig(steps=steps, eval_every=10, warmup=0, lr=3e-3, device="cpu")
    data = data or DataConfig(tasks=tasks)
    experiment = Experiment(
        data, training, parse_method(method), "mlp:16", latent_dim=16, **settings
    )
    run_experiment(experiment, directory, quiet=True)
    return directory


def sites_of(folder, count=10, *, graded=False, **settings):
    """A small finished run on the prices or grades of a table of sites."""
    table = write_sites(folder / "sites.csv", range(count), 20, graded=graded)
    target = "grade" if graded else "price"
    data = DataConfig(str(table), task_column="site", target_column=target)
    return run_of(folder / "run", data=data, **settings)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "pairs", "split:2,all", steps=100)


@pytest.fixture(scope="module")
def described(pairs):
    baseline = run_of(pairs.parent / "experts", "split:2", method="experts")
    change_tasks(pairs, pairs.parent / "long", rename=("0-2", LONG))
    change_tasks(pairs.parent / "long", pairs.parent / "hostile", rename=("0-1", HOSTILE))
    return {
        **{path.name: describe_run(path) for path in (pairs, baseline, pairs.parent / "hostile")},
        **{
            name: describe_results(DOCS / name)
            for name in (
                *("digits", "new-tasks", "typology", "interpolation", "compare", "variations"),
                *("target-sparsity", "scaling"),
            )
        },
    }


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=0
        )
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Open a report of what was described; nothing may go wrong on the page until the end."""
    problems: list[str] = []
    contexts = []

    def call(*described, **context):
        path = tmp_path / "report.html"
        write_html(described, path)
        contexts.append(browser.new_context(**context))
        contexts[-1].set_default_timeout(0)  # what hangs is ended by the time limit of the test
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                request.url.partition("#")[0] == path.as_uri()
                or problems.append(f"request: {request.url}")
            ),
        )
        page.goto(path.as_uri())
        drawn(page)
        return page

    yield call
    for context in contexts:
        context.close()
    assert problems == []


def drawn(page):
    """Wait until the page is drawn."""
    # Waiting in the page itself is evaluation, which its policy forbids.
    while not page.evaluate("performance.getEntriesByName('drawn').length"):
        page.wait_for_timeout(10)


def section(page, name):
    """The section under a heading, drawn."""
    link = page.get_by_role("navigation").get_by_role("link", name=name, exact=True)
    link.focus()
    link.press("Enter")  # on a phone the strip of links moves as the page scrolls
    found = page.locator("section:visible", has=page.get_by_role("heading", name=name, exact=True))
    found.and_(page.locator("[data-drawn]")).wait_for()
    return found


def violations(page):
    """What axe finds wrong for people who hear or enlarge the page: ids of rules, with elements."""
    axe = pytest.importorskip("axe_playwright_python")  # for its copy of the script axe-core
    page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text("utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return {rule["id"]: [node["html"][:200] for node in rule["nodes"]] for rule in found}


def cells(table):
    """The texts of a table's body, row by row."""
    return table.evaluate(
        "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(c => c.textContent))"
    )


def tiles(page):
    """Values of the summary, by name."""
    return page.locator(".tiles:visible > div").evaluate_all(
        "tiles => Object.fromEntries(tiles.map(tile => [...tile.children].map(c => c.textContent))"
        ".map(([name, ...texts]) => [name, texts]))"
    )


def open_all(page):
    links = page.get_by_role("navigation").get_by_role("link")
    names = links.all_text_contents()
    for name in names:
        assert section(page, name).locator("svg, canvas, table, dl, img, p").count()
    return names


def in_points(difference):
    return f"{100 * difference:+.2f}".replace("-", "−")


def percent(share):
    return f"{share:.2%}"


def test_axe_finds_nothing_wrong(show, tmp_path):
    page = show(describe_run(run_of(tmp_path / "run", "split:2")))
    open_all(page)
    section(page, "Distances between tasks")
    assert violations(page) == {}


def test_a_run_s_page_says_when_and_on_what_it_was_made(show, described):
    page, made = show(described["pairs"]), described["pairs"]["made"]
    lead = page.locator(".lead:visible").inner_text()
    assert made["date"] in lead
    assert made["machine"]["cpu"] in lead
    found = section(page, "Configuration")
    found.get_by_text("How it was made", exact=True).first.click()
    assert made["machine"]["torch"] in found.inner_text()


def test_the_accuracies_are_those_of_the_result(show, described, pairs):
    test = json.loads((pairs / "result.json").read_text())["test"]
    page = show(described["pairs"])
    shown = tiles(page)
    assert shown["mean test accuracy"] == [
        percent(test["accuracy"]),
        "over 45 tasks; 71.28% to 74.35%",
    ]
    assert shown["lowest task"] == [
        percent(test["worst_accuracy"]),
        f"{test['worst_task']}; 9.80% to 26.91%",
    ]
    rows = cells(section(page, "Accuracy per task").locator("table"))
    assert {row[0]: row[1] for row in rows} == {
        name: percent(accuracy) for name, accuracy in test["accuracies"].items()
    }
    assert {row[0]: row[3] for row in rows} == {
        name: f"{loss:.4f}" for name, loss in test["losses"].items()
    }


def test_tables_sort_and_are_searched(show, described):
    page = show(described["pairs"])
    found = section(page, "Accuracy per task")
    header = found.get_by_role("columnheader", name="accuracy")
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    values = [float(row[1][:-1]) for row in cells(found.locator("table"))]
    assert values == sorted(values, reverse=True)
    found.get_by_label("Find a task").fill("8-9")
    assert found.locator("tbody tr:visible").count() == 1


def test_one_choice_of_a_task_goes_through_all_pictures(show, described):
    page = show(described["pairs"])
    open_all(page)
    section(page, "Map of the tasks").get_by_label("Task", exact=True).select_option("3-8")
    names = [task["name"] for task in described["pairs"]["tasks"]]
    chosen = names.index("3-8")
    confusion = section(page, "Confusion matrices")
    choice = confusion.get_by_label("Task", exact=True)
    assert choice.evaluate("select => select.selectedOptions[0].textContent") == "3-8"
    matrix = described["pairs"]["confusion"]["matrices"][chosen]
    assert cells(confusion.locator("table")) == [
        [name, *map(str, row)] for name, row in zip("38", matrix, strict=True)
    ]
    assert page.locator("tr[aria-selected=true] th").text_content() == "3-8"
    near = section(page, "Distances between tasks").locator("ol li").first.text_content()
    task = described["pairs"]["tasks"][chosen]
    assert near == f"{names[task['nearest']]} {task['distance']:.3f}"


def signed(value):
    return f"{value:.3f}".replace("-", "−")


def test_numbers_are_shown_by_r_squared(show, tmp_path):
    path = sites_of(tmp_path)
    test = json.loads((path / "result.json").read_text())["test"]
    assert test["worst_accuracy"] < 0  # what a percentage would show worst
    found = describe_run(path)
    found["curves"]["validation"]["accuracy"][0] = -2.5
    page = show(found)
    open_all(page)
    shown = tiles(page)
    assert shown["mean test R²"] == [signed(test["accuracy"]), "over 10 tasks"]
    assert shown["lowest task"] == [signed(test["worst_accuracy"]), test["worst_task"]]
    found = section(page, "R² per task")
    headings = found.get_by_role("columnheader").all_text_contents()
    assert headings == ["task", "R²", "squared error", "test rows", "nearest task"]
    rows = {row[0]: row[1:4] for row in cells(found.locator("table"))}
    assert rows == {
        name: [signed(value), f"{test['losses'][name]:.4f}", "4"]
        for name, value in test["accuracies"].items()
    }
    with page.expect_download() as saved:
        found.get_by_role("button", name="Save as CSV").first.click()
    assert saved.value.path().read_text().startswith("task,R²,squared error,rows")
    worst = f"{test['worst_task']}: {signed(test['worst_accuracy'])}"
    assert found.locator(".pick").first.get_attribute("data-tip") == worst
    curves = section(page, "Learning curves")
    titles = curves.get_by_role("heading", level=4).all_text_contents()
    assert titles == ["Validation R²", "Squared error, in scaled units, on a log axis"]
    places = [
        float(c.get_attribute("cy")) for c in curves.locator(".plot").first.locator("circle").all()
    ]
    assert all(0 < y < 200 for y in places)  # what is below zero lies in the picture too
    text = page.locator(".panel").inner_text()
    for word in ("ccurac", "mage", "NaN", "undefined", "nats", "interval"):
        assert word not in text.replace("data.image_size", "").replace("tasks.image_shape", "")


def test_what_numbers_were_measured_when_a_task_was_added(show, tmp_path):
    path = sites_of(tmp_path, head="ridge", base="residual")
    for name, site, rows in (("few", 10, 6), ("many", 11, 30)):
        write_sites(tmp_path / f"{name}.csv", range(site, site + 1), rows)
        adapt_run(path, tmp_path / name, tmp_path / f"{name}.csv")
        path = tmp_path / name
    page = show(describe_run(path))
    found = section(page, "Tasks")
    headings = found.get_by_role("columnheader").all_text_contents()
    assert headings[2:5] == ["learned from rows", "R² on them", "typical error on them"]
    assert headings[5:9] == ["expected R²", "expected typical error", "test rows", "test R²"]
    few, many = (entry["measured"] for entry in describe_run(path)["tasks"][-2:])
    shown = [row[2:7] for row in cells(found.locator("table"))[-2:]]
    assert shown[0][:2] == ["6", signed(few["accuracy"])]
    assert shown[0][3:] == ["–", "–"]
    low, high = map(signed, many["interval"])
    assert shown[1][3] == f"{signed(many['expected'])} ({low} to {high})"
    for text, value in zip(shown[1][2::2], (many["error"], many["expected_error"]), strict=True):
        assert float(text) == pytest.approx(value, rel=1e-3)


def test_classes_of_rows_are_not_called_images(show, tmp_path):
    page = show(describe_run(sites_of(tmp_path, graded=True)))
    note = section(page, "Accuracy per task").locator(".note").text_content()
    assert note.startswith("The share of each task's test rows that is classified correctly, with")
    assert (
        "test rows"
        in section(page, "Accuracy per task").get_by_role("columnheader").all_text_contents()
    )
    assert "test rows." in section(page, "Confusion matrices").inner_text()
    assert "test rows of each task." in section(page, "Between two tasks").inner_text()


def test_numbers_are_compared_by_r_squared(show, tmp_path):
    results = json.loads((DOCS / "digits" / "results.json").read_text())
    for row in results["rows"]:
        row["accuracy"]["mean"] -= 1
        row["accuracies"] = {
            seed: {name: value - 1 for name, value in own.items()}
            for seed, own in row["accuracies"].items()
        }
    (tmp_path / "results.json").write_text(json.dumps({**results, "score": "R²"}))
    page = show(describe_results(tmp_path))
    best = max((row["accuracy"] for row in results["rows"]), key=lambda one: one["mean"])
    value, more = tiles(page)["best mean test R²"]
    assert value == signed(best["mean"])
    assert more.endswith(f", ±\u00a0{best['sd']:.3f}")
    assert "R² against budget" in open_all(page)
    tips = section(page, "R² against budget").locator("[data-tip]")
    assert "%" not in "".join(tips.evaluate_all("all => all.map(p => p.dataset.tip)"))
    rows = cells(section(page, "R² per task").locator("table"))
    for cell, row in zip(rows[0][1:], results["rows"], strict=True):
        seeds = [seed["0-1"] for seed in row["accuracies"].values()]
        assert cell == signed(sum(seeds) / len(seeds))
    text = page.locator(".panel").inner_text()
    assert "ccurac" not in text
    assert "%" not in text


def test_the_way_between_two_tasks_by_keyboard(show, described):
    lines, tasks = described["pairs"]["interpolation"], described["pairs"]["tasks"]
    page = show(described["pairs"])
    found = section(page, "Between two tasks")
    slider = found.get_by_label("Position between them")

    def check(pair, position, swapped=False):
        ends = [(pair["a"], pair["of_a"]), (pair["b"], pair["of_b"])]
        shown = [
            (tasks[task]["name"], percent(values[10 - position if swapped else position]))
            for task, values in (ends[::-1] if swapped else ends)
        ]
        assert found.locator("output p").all_text_contents() == [
            f"on {name}{share}{10 * position}% of the way" for name, share in shown
        ]
        said = slider.get_attribute("aria-valuetext")
        assert said == f"{10 * position}% of the way: " + ", ".join(
            f"{name} {share}" for name, share in shown
        )

    pair = lines["pairs"][0]
    check(pair, 0)
    slider.focus()
    for position in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        check(pair, position)
    page.keyboard.press("End")
    check(pair, 10)
    page.keyboard.press("ArrowLeft")
    pair = lines["pairs"][-1]
    found.get_by_label("From", exact=True).select_option(tasks[pair["b"]]["name"])
    found.get_by_label("To", exact=True).select_option(tasks[pair["a"]]["name"])
    check(pair, 9, swapped=True)


def test_the_verdicts_are_those_of_the_study(show, described):
    claims = json.loads((DOCS / "new-tasks" / "results.json").read_text())["claims"]
    page = show(described["new-tasks"])
    verdicts = [claim["verdict"] for claim in claims]
    shown = tiles(page)
    assert shown["claims supported"] == [str(verdicts.count("supported")), f"of {len(claims)}"]
    assert shown["undecided"][0] == str(verdicts.count("undecided"))
    found = section(page, "Verdict on each claim")
    sign = {"supported": "▲", "not supported": "▼", "undecided": "○"}
    means = [claim for claim in claims if str(claim["shots"]).startswith("mean")]
    overview = cells(found.locator("table").first)
    assert [cell for row in overview for cell in row[1:] if cell != "–"] == [
        f"{sign[claim['verdict']]} {in_points(claim['mean'])}" for claim in means
    ]
    rows = cells(found.locator("table").last)
    assert [(row[3], row[4][2:], row[5]) for row in rows] == [
        (in_points(c["mean"]), c["verdict"], f"{in_points(c['low'])} to {in_points(c['high'])}")
        for c in claims
    ]
    for family in ("permuted Fashion-MNIST", "two pairs, then re-paired"):
        own = [claim for claim in claims if claim["family"] == family]
        found.get_by_label("Tasks", exact=True).select_option(family)
        found.locator(".chart [data-tip]").first.wait_for()
        said = found.locator(".chart [data-tip]").evaluate_all("all => all.map(p => p.dataset.tip)")
        assert sorted(text.partition(f", {family}: ")[2] for text in said) == sorted(
            f"{in_points(c['mean'])} points, {in_points(c['low'])} to {in_points(c['high'])}; "
            f"{c['verdict']}"
            for c in own
        )
    findings = section(page, "At a glance").locator(".findings li").all_text_contents()
    assert len(findings) == len({claim["claim"] for claim in means})
    ahead = [c for c in means if c["claim"] == "sparse linear, base and 256 − sparse linear"]
    assert f"above zero in {len(ahead)} of {len(ahead)} cases" in findings[0]


def test_a_study_that_is_a_picture(show, described):
    page = show(described["interpolation"])
    assert "What lies between the embeddings" in section(page, "Question").text_content()
    width = (
        section(page, "In a picture")
        .locator("img")
        .evaluate("async image => { await image.decode(); return image.naturalWidth; }")
    )
    assert width > 900
    results = json.loads((DOCS / "interpolation" / "results.json").read_text())
    rows = cells(section(page, "All figures").locator("table").first)
    assert [row[0] for row in rows] == [row["method"] for row in results["rows"]]


def test_verdicts_of_a_study_without_numbers_of_images_are_one_table(show, described):
    results = json.loads((DOCS / "compare" / "results.json").read_text())
    page = show(described["compare"])
    rows = cells(section(page, "Verdict on each claim").locator("table"))
    assert [(row[0], row[1], row[2], row[3][2:]) for row in rows] == [
        (
            claim["family"],
            claim["claim"],
            in_points(claim["mean"]),
            claim["verdict"],
        )
        for claim in results["claims"]
    ]
    legend = section(page, "Accuracy against budget").locator(".legend")
    methods = {row["method"] for row in results["rows"]}
    assert set(legend.locator("button").all_text_contents()) == methods
    assert legend.locator("[aria-pressed=true]").count() == 3


def test_a_comparison_is_that_of_its_results(show, described):
    results = json.loads((DOCS / "digits" / "results.json").read_text())
    page = show(described["digits"])
    best = max(results["rows"], key=lambda row: row["accuracy"]["mean"])
    assert tiles(page)["best mean test accuracy"][0] == percent(best["accuracy"]["mean"])
    budget = section(page, "Accuracy against budget")
    assert [row[0] for row in cells(budget.locator("table"))] == [
        row["method"] for row in results["rows"]
    ]
    rows = cells(section(page, "Accuracy per task").locator("table"))
    for cell, row in zip(rows[0][1:], results["rows"], strict=True):
        seeds = [seed["0-1"] for seed in row["accuracies"].values()]
        assert cell == percent(sum(seeds) / len(seeds))


def test_tabs_by_keyboard(show, described):
    page = show(*described.values())
    names, last = list(described), len(described) - 1

    def check(i):
        selected = page.locator("[role=tab][aria-selected=true]")
        assert selected.all_text_contents() == [names[i]]
        assert selected.evaluate("tab => tab === document.activeElement && tab.tabIndex === 0")
        panel = page.locator(f"#{selected.get_attribute('aria-controls')}")
        assert panel.get_attribute("aria-labelledby") == selected.get_attribute("id")
        assert page.get_by_role("heading", level=2).all_text_contents() == [names[i]]
        assert page.locator("[role=tab][tabindex='0']").count() == 1

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Tab")
    check(0)
    for key, i in (
        ("ArrowRight", 1),
        ("End", last),
        ("ArrowRight", 0),
        ("ArrowLeft", last),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        check(i)


def test_every_section_opens_on_a_phone_and_does_not_scroll_sideways(show, described):
    names = ("pairs", "experts", "hostile", "digits", "new-tasks", "typology", "compare")
    page = show(*(described[name] for name in names), **PHONE, color_scheme="dark")
    opened = []
    for tab in page.get_by_role("tab").all():
        tab.click()
        opened.append(open_all(page))
        widths = "[document.documentElement.scrollWidth, innerWidth]"
        assert page.evaluate(widths) == [390, 390]
        if page.get_by_role("heading", name="Question").is_visible():
            assert page.evaluate("document.documentElement.scrollHeight") <= 6000
    assert [len(names) for names in opened] == [11, 6, 8, 4, 6, 5, 6]
    assert "Verdict on each claim" in opened[4]


def test_all_is_drawn_in_print(show, described):
    page = show(described["pairs"], color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name in ("Learning curves", "Map of the tasks", "Between two tasks", "Wiring of"):
        found = page.locator("section", has=page.get_by_role("heading", name=name))
        assert found.locator(".plot > svg").first.evaluate("svg => svg.childElementCount") > 3
    assert page.locator("nav:visible, .controls:visible, .tools:visible").count() == 0
    bar = page.locator(".bar i").first
    assert bar.evaluate("bar => getComputedStyle(bar).printColorAdjust") == "exact"
    ground = page.locator("section").first.evaluate("s => getComputedStyle(s).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    text = page.locator("body").inner_text()
    assert "undefined" not in text
    assert "[object" not in text


def test_points_by_keyboard_zoom_and_downloads(show, described):
    page = show(described["pairs"])
    found = section(page, "Learning curves").locator(".chart").first
    points = found.locator("[data-tip]")
    points.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tip") == points.nth(1).get_attribute(
        "aria-label"
    )
    assert page.locator("#tip").text_content().startswith("mean of all tasks, after 20: ")
    place = found.locator("svg circle").first
    before = place.get_attribute("cy")
    found.get_by_role("button", name="Zoom in").click()
    assert place.get_attribute("cy") != before
    found.get_by_role("button", name="Zoom out").click()
    assert place.get_attribute("cy") == before
    with page.expect_download() as saved:
        found.get_by_role("button", name="Save as CSV").click()
    rows = saved.value.path().read_text().splitlines()
    curve = described["pairs"]["curves"]["validation"]
    assert rows[:2] == [
        "line,updates,value",
        f"mean of all tasks,{curve['step'][0]},{curve['accuracy'][0]}",
    ]
    with page.expect_download() as saved:
        found.get_by_role("button", name="Save as SVG").click()
    drawing = saved.value.path().read_text()
    assert drawing.startswith("<svg")
    assert "var(" not in drawing


def test_the_address_names_the_open_tab(show, described):
    page = show(*described.values())
    page.get_by_role("tab", name="typology").click()
    index = list(described).index("typology")
    assert page.evaluate("location.hash") == f"#panel-{index}"
    page.reload()
    drawn(page)
    assert page.locator("[role=tab][aria-selected=true]").text_content() == "typology"


def test_names_of_tasks_are_shown_as_they_are(show, described):
    page = show(described["hostile"])
    open_all(page)
    rows = cells(section(page, "Tasks").locator("table"))
    assert {HOSTILE, LONG} <= {row[0] for row in rows}
    page.get_by_label("Task", exact=True).first.select_option(HOSTILE)
    assert page.get_by_role("status").text_content().startswith(f"{HOSTILE}. Its nearest task is ")
    assert page.locator("img").count() == 0
    assert "no images of them" in page.locator(".notice").text_content()


def test_two_hundred_tasks(show, tmp_path):
    page = show(describe_run(sites_of(tmp_path, 200, graded=True, steps=2)))
    assert len(open_all(page)) == 10
    rows = cells(section(page, "Accuracy per task").locator("table"))
    assert len(rows) == 200
    assert page.locator("svg .pick").count() == 400
    assert (
        section(page, "Distances between tasks").locator("canvas").first.evaluate("c => c.width")
        >= 600
    )
