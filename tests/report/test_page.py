"""The report's page, its text read as a file and its behaviour in a browser."""

import base64
import re
import shutil
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from test_tables import kept, made_up

from anomaly_bench.record import read_records, write_json, write_text
from anomaly_bench.report import page
from anomaly_bench.report.pictures import Picture
from anomaly_bench.report.tables import make_tables, write_report

HOSTILE = "<script>document.title = 'pwned'</script>\"' onload=\"x\" & 船 =1+1 {{ 7 * 7 }}"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "script"),
    *(
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "a",
        "div",
        "label",
        "input",
        "output",
        "button",
        "details",
        "summary",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img", "pre"),
}


def records():
    """Two methods, one of them with a name that would be markup, on two classes, one of them so named."""
    names = ["cat", HOSTILE]
    areas = {("ae", "cat"): 0.9, ("ae", HOSTILE): 0.7, (HOSTILE, "cat"): 0.95, (HOSTILE, HOSTILE): 0.1}
    runs = [
        made_up(cls, seed, area, model=model, class_index=names.index(cls), data_classes=names)
        for (model, cls), area in areas.items()
        for seed in (0, 1)
    ]
    failed = made_up("cat", 2, model="ae", status="failed", failure={"error": f"no {HOSTILE}"})
    return [failed, made_up("cat", 3, model="ae", status="unfinished"), *runs]


class Page(HTMLParser):
    """What a page holds: names of its tags, and the attributes of each."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def written(folder, found, pictures=()):
    page.write_page(folder, make_tables(found), found, pictures)
    return (folder / "index.html").read_text(encoding="utf-8")


def test_names_from_outside_stay_text(tmp_path):
    text = written(tmp_path, records())
    found = Page(text)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert len(found.all("script")) == 1
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in found.words
    assert "49" not in found.words


def test_the_policy_allows_what_the_page_has_and_nothing_else(tmp_path):
    text = written(tmp_path, records())
    policy = Page(text).all("meta")[1]["content"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for kind in ("style", "script"):
        (inline,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(sha256(inline.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_it_asks_for_nothing_from_elsewhere(tmp_path):
    text = written(tmp_path, records())
    assert "://" not in text
    links = [attributes["href"] for attributes in Page(text).all("a")]
    assert {link for link in links if not link.startswith("#")} == {"table.csv", "table.md", "table.tex"}


def test_the_same_records_give_the_same_page(tmp_path):
    assert written(tmp_path, records()) == written(tmp_path, records()[::-1])
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def picture(folder, name, size):
    (folder / f"{name}.png").write_bytes(b"x" * size)
    (folder / f"{name}.svg").write_bytes(b"x" * (size + (3 if name == "c" else 0)))
    return Picture("pets-leave_one_class_out", f"picture {name}", folder / name)


def test_pictures_beyond_the_budget_are_links(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PICTURE_BYTES", 8)
    pictures = [picture(tmp_path, "a", 3), picture(tmp_path, "b b", 6), picture(tmp_path, "c", 3)]
    text = written(tmp_path, records(), pictures)
    assert [image["src"] for image in Page(text).all("img")] == [
        "data:image/svg+xml;base64,eHh4",
        "data:image/png;base64,eHh4",
    ]
    assert "picture b b: not shown here, for the page would become too large" in text
    assert 'href="b%20b.svg"' in text


def test_a_picture_of_no_table_is_shown_too(tmp_path):
    other = picture(tmp_path, "a", 3)._replace(table="the paper's Figure 5")
    assert "More figures" in written(tmp_path, records(), [other])
    assert "More figures" not in written(tmp_path, records(), [picture(tmp_path, "a", 3)])


def test_runs_beyond_the_most_are_left_out_those_not_finished_last(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_RUNS", 3)
    text = written(tmp_path, records())
    assert text.count('<tbody><tr>\n<th scope="row"><details>') == 3
    assert "7 runs are not listed" in text
    assert {"failed", "unfinished"} <= set(Page(text).words)


def test_what_is_missing_and_failed_is_told(tmp_path):
    found = Page(written(tmp_path, records()))
    for text in ("8 finished, 1 failed, 1 unfinished", f"ae-cat-2: no {HOSTILE}", "ae-cat-3", "2 of 4"):
        assert text in found.words
    whole = written(tmp_path, records()[2:])
    assert "Every run that was begun is finished" in whole


def test_a_run_tells_what_it_does_not_share(tmp_path):
    text = written(tmp_path, [made_up("cat", 0), made_up("cat", 1, git="other")])
    shared, *own = re.findall("<pre>(.*?)</pre>", text, re.DOTALL)
    assert "model: ganomaly\n" in shared
    assert ["git: " in part for part in (shared, *own)] == [False, True, True]


def test_runs_without_a_word_have_a_page_too(tmp_path):
    write_json(tmp_path / "lost" / "error.json", {"error": ["x"]})
    write_json(tmp_path / "odd" / "run.json", {"model": 3, "seed": {"a": [{}]}})
    assert "lost: [&#39;x&#39;]" in written(tmp_path, read_records(tmp_path))


def test_files_of_runs_are_linked_where_they_lie_beside_the_report(tmp_path):
    kept(tmp_path / "runs", made_up())
    (tmp_path / "runs" / "run0" / "figures").mkdir()
    picture(tmp_path / "runs" / "run0" / "figures", "scores", 3)
    write_text(tmp_path / "runs" / "run0" / "config.yaml", "a: 1")
    records = read_records(tmp_path / "runs")
    beside = Page(written(tmp_path / "runs" / "report", records))
    links = {attributes["href"] for attributes in beside.all("a")}
    assert {"../run0/config.yaml", "../run0/metrics.json", "../run0/figures/scores.png"} <= links
    assert len(beside.all("img")) == 1
    assert "run0/" not in written(tmp_path / "else" / "report", records)


# ------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, driven by Selenium; it sees no network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program, driver = next(filter(None, programs), None), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("the page is not opened: there is no chromium or no chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kept(folder, *records())
    write_report(folder)
    return folder / "report" / "index.html"


@pytest.fixture
def opened(browser, report):
    """The page; at the end of a test, it must have complained of nothing."""
    browser.get(report.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def grid(opened, number):
    """A table of the page with its tools."""
    return opened.find_elements("css selector", ".grid")[number]


def column(table, number):
    """Texts of a column in the first rows of the groups that are shown."""
    cells = table.find_elements(
        "css selector", f"tbody:not([hidden]) tr:first-child > :nth-child({number + 1})"
    )
    return [cell.text for cell in cells]


def head(table, name):
    return next(
        cell for cell in table.find_elements("css selector", "thead th") if cell.text.startswith(name)
    )


def click(table, name):
    cell = head(table, name)
    cell.find_element("css selector", "button").click()
    return cell.get_attribute("aria-sort")


def test_names_are_text_in_the_browser_too(opened):
    assert opened.title == "Report of 10 runs: anomaly-bench"
    assert HOSTILE in column(grid(opened, 0), 0)
    assert opened.execute_script("return document.scripts.length") == 1


def test_every_picture_can_be_shown_and_nothing_is_fetched(opened):
    widths = opened.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert widths
    assert all(widths)
    assert (
        opened.execute_script(
            "return performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length"
        )
        == 0
    )


def test_a_table_is_sorted_by_a_click_and_a_method_keeps_its_rows(opened):
    table = grid(opened, 0)
    assert (click(table, "cat"), column(table, 0)) == ("descending", [HOSTILE, "ae"])
    assert (click(table, "cat"), column(table, 0)) == ("ascending", ["ae", HOSTILE])
    assert click(table, "model") == "ascending"
    assert head(table, "cat").get_attribute("aria-sort") is None
    for body in table.find_elements("css selector", "tbody"):
        assert [row.text.startswith("·") for row in body.find_elements("css selector", "tr")] == [False, True]


def test_what_has_no_number_comes_last_either_way(opened):
    runs = opened.find_element("css selector", "#runs .grid")
    names = [cell.text for cell in runs.find_elements("css selector", "thead th")]
    place = next(number for number, name in enumerate(names) if name.startswith("AUROC"))
    for order in ("descending", "ascending"):
        assert click(runs, "AUROC") == order
        areas = column(runs, place)
        assert areas[-2:] == ["–", "–"]
        assert areas[:-2] == sorted(areas[:-2], reverse=order == "descending")


def test_a_table_is_filtered_by_all_words(opened):
    runs = opened.find_element("css selector", "#runs .grid")
    box, told = (runs.find_element("css selector", name) for name in ("input", "output"))
    assert told.text == "10 of 10"
    box.send_keys("AE finished")
    assert told.text == "4 of 10"
    assert len(column(runs, 0)) == 4
    box.send_keys(" nothing-has-this")
    assert (told.text, column(runs, 0)) == ("0 of 10", [])


def test_a_run_opens_and_shows_its_record(opened):
    body = opened.find_elements("css selector", "#runs tbody")[2]
    summary, facts = (body.find_element("css selector", name) for name in ("summary", "pre"))
    assert not facts.is_displayed()
    summary.click()
    assert facts.is_displayed()
    assert "metrics.auroc: 0.9" in facts.text


def test_light_and_dark_as_the_reader_has_it(opened):
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        grounds.append(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == ["rgb(255, 255, 255)", "rgb(22, 24, 27)"]


def test_a_script_that_came_in_all_the_same_would_not_run(opened):
    opened.execute_script(
        "const one = document.createElement('script'); one.textContent = 'document.title = 1';"
        "document.body.append(one)"
    )
    assert opened.title != "1"
    (refused,) = opened.get_log("browser")
    assert "Content Security Policy" in refused["message"]


def test_of_very_many_runs_some_are_shown_until_asked(browser, tmp_path):
    found = [made_up(seed=seed, data_classes=["cat"]) for seed in range(1200)]
    page.write_page(tmp_path, make_tables(found[:1]), found, [])
    assert (tmp_path / "index.html").stat().st_size < 2_000_000
    browser.get((tmp_path / "index.html").as_uri())
    runs = browser.find_element("css selector", "#runs .grid")
    told, ask = (runs.find_element("css selector", name) for name in ("output", ".tools button"))
    assert told.text == "200 shown, 1200 of 1200"
    ask.click()
    assert told.text == "1200 of 1200"
    assert not ask.is_displayed()
    assert browser.get_log("browser") == []
