"""The page in a real browser: it renders, requests nothing, and its numbers are those of the run's files."""

import json
from html import unescape
from pathlib import Path

import pytest

from distributed.drawing.wording import MINUS
from distributed.report.page import CONTENTS, build_report
from docs import browser as browser_module
from docs.browser import Browser, BrowserError, View
from pupujepa.front_door import Command, enter

MAX_BYTES = 3_000_000

# what a reader sees of each section, and of the probe table
READ = """({
  sections: Object.fromEntries([...document.querySelectorAll("main > section")].map((s) => [s.id, {
    title: s.querySelector("h2").innerText, pictures: s.querySelectorAll("svg").length, text: s.innerText }])),
  headline: document.querySelector("h1").innerText,
  cells: [...document.querySelectorAll("table.probes tbody tr")].map((tr) => ({
    task: tr.querySelector("th").firstChild.textContent,
    values: [...tr.querySelectorAll("td[data-value]")].map((td) => [+td.dataset.value,
      td.querySelector("strong, span").innerText, td.querySelector("small").innerText]) })),
  overflow: document.documentElement.scrollWidth - innerWidth,
  unnamed: [...document.querySelectorAll("svg:not([aria-hidden])")].filter((s) => !s.getAttribute("aria-label")).length,
  external: [...document.querySelectorAll("[src], link[href], image[href], use[href], a[href]")]
    .map((e) => e.getAttribute("src") ?? e.getAttribute("href")).filter((u) => !/^(#|data:)/.test(u)),
})"""


@pytest.fixture(scope="module")
def visit(browser, made_page):
    """One visit of the made page on a desktop."""
    return browser.visit(made_page.as_uri(), READ)


def test_every_section_is_there_with_pictures(visit):
    """In the order of the contents, none of them reporting a gap."""
    assert [(key, s["title"]) for key, s in visit.result["sections"].items()] == list(CONTENTS)
    assert all(s["pictures"] > 0 for key, s in visit.result["sections"].items() if key != "reproduce")
    assert not any("Nothing to show yet" in s["text"] for s in visit.result["sections"].values())


def test_the_browser_has_nothing_to_complain_about(visit):
    """No error, no warning, and nothing that the content security policy had to stop."""
    assert visit.errors == []


def test_nothing_is_requested(visit, made_page):
    """The file itself and what it carries inside."""
    assert [url for url in visit.requests if not url.startswith("data:")] == [made_page.as_uri()]
    assert visit.result["external"] == []
    assert "http://" not in made_page.read_text()
    assert "https://" not in made_page.read_text()


def test_the_page_is_small(made_page):
    """It can be sent by e-mail."""
    assert made_page.stat().st_size < MAX_BYTES


def test_the_table_holds_the_numbers_of_the_results(visit, made_run):
    """Each cell carries results.jsonl's value exactly, and shows it and its interval to three digits."""
    rows = [json.loads(line) for line in (made_run / "results.jsonl").read_text().splitlines()]
    by_task = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    assert len(visit.result["cells"]) == len(by_task)
    for cells, task_rows in zip(visit.result["cells"], by_task.values(), strict=True):
        difference = task_rows[0]["difference_to"]["random_init"]
        expected = [(r["value"], r["interval"]) for r in task_rows] + [(difference["value"], difference["interval"])]
        assert [value for value, _, _ in cells["values"]] == [value for value, _ in expected]
        for (value, shown, bounds), (_, limits) in zip(cells["values"], expected, strict=True):
            assert float(shown.replace(MINUS, "-")) == pytest.approx(value, abs=5.01e-4)
            read = [float(part.replace(MINUS, "-")) for part in bounds.strip("[]").split(", ")]
            assert read == pytest.approx(limits, abs=5.01e-4)


QUALITY = """(() => {
  const figure = [...document.querySelectorAll("#training figure")].find((f) => f.innerText.includes("Quality while"));
  return figure && { text: figure.innerText, lines: figure.querySelectorAll("svg .line").length,
    label: figure.querySelector("svg").getAttribute("aria-label"),
    width: figure.querySelector("svg .line").getBoundingClientRect().width };
})()"""


def test_a_run_that_was_probed_has_a_curve_of_quality(browser, made_page):
    """One line per task and their mean, over the steps at which it was probed, ending at the log's last values."""
    found = browser.visit(made_page.as_uri(), QUALITY).result
    assert found["lines"] == 6
    assert found["width"] > 100
    for label in ("key", "beats", "instruments", "tempo", "collection", "mean"):
        assert label in found["text"]
    assert "key ends at 0.7" in found["label"]


def test_a_run_that_was_not_probed_lacks_nothing(bare_run, tmp_path):
    """Neither a curve nor a gap."""
    rows = [json.loads(line) for line in (bare_run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if not key.startswith("probe/")} for row in rows]
    (bare_run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Path(build_report(bare_run, out=tmp_path / "page.html")).read_text().lower()
    assert "quality while it trains" not in text


def test_thresholds_are_those_of_the_run(bare_run, tmp_path):
    """The page draws and judges by the guard's settings in config.yaml, as the log does."""
    with (bare_run / "config.yaml").open("a") as file:
        file.write("guard:\n  std_below: 0.99\n")
    text = Path(build_report(bare_run, out=tmp_path / "page.html")).read_text()
    assert "alarm below 0.99" in text
    assert "below 0.99." in text, "the verdict says so too"


def test_the_headline_counts_the_gains(visit):
    """Four tasks gain more than their half-width; the key does not, and the page says so."""
    assert visit.result["headline"] == "Training helped: 4 of 5 probes beat the untrained network"
    assert f"key ({MINUS}0.021" in visit.result["sections"]["probes"]["text"]


@pytest.mark.parametrize("view", [View(375, 800), View(375, 800, dark=True), View(1920, 1080)], ids=str)
def test_it_fits_every_screen(browser, made_page, view):
    """Nothing sticks out of a phone or a wide screen."""
    found = browser.visit(made_page.as_uri(), READ, view=view)
    assert found.result["overflow"] <= 0
    assert found.errors == []


def test_every_drawing_has_a_name(visit):
    """Screen readers hear what the drawing says."""
    assert visit.result["unnamed"] == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible(browser, made_page, dark):
    """Every text reaches the contrast of 4.5 to 1 against what is painted under it (WCAG AA)."""
    script = """(() => {
      const luminance = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
      const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)|transparent/.test(c)) return c; } };
      const bad = [];
      for (const e of document.querySelectorAll("h1, h2, h3, h4, p, li, dt, dd, th, td, small, b, a, text, code")) {
        const style = getComputedStyle(e);
        const text = luminance(e.tagName === "text" ? style.fill : style.color), under = luminance(ground(e));
        const ratio = (Math.max(text, under) + 0.05) / (Math.min(text, under) + 0.05);
        if (ratio < 4.5) bad.push([e.tagName, e.getAttribute("class"), ratio]);
      }
      return bad;
    })()"""
    assert browser.visit(made_page.as_uri(), script, view=View(dark=dark)).result == []


def test_a_crosshair_runs_through_all_curves(browser, made_page):
    """Arrow keys on one curve show the values of every curve at that step; Escape puts the last ones back."""
    script = """(() => {
      const values = document.querySelectorAll("#training [data-series], #collapse [data-series]");
      const read = () => [...values].map((b) => b.innerText);
      const chart = document.querySelector("#training svg.chart");
      const press = (key) => chart.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const last = read();
      press("Home");
      const first = read(), lit = document.querySelectorAll(".crosshair.on").length;
      press("Escape");
      return { last, first, again: read(), lit, dark: document.querySelectorAll(".crosshair.on").length };
    })()"""
    found = browser.visit(made_page.as_uri(), script).result
    assert found["again"] == found["last"]
    assert sum(a != b for a, b in zip(found["first"], found["last"], strict=True)) > 0.8 * len(found["last"])
    assert found["lit"] > 5
    assert found["dark"] == 0


def test_regions_can_be_chosen(browser, made_page):
    """Arrow keys and clicks move the hidden region: frame, glow and sentence change."""
    script = """(() => {
      const figure = document.querySelector("#attention-explorer"), svg = figure.querySelector("svg");
      const read = () => [svg.querySelector(".region").getAttribute("x"),
        svg.querySelector(".heat").getAttribute("href"), figure.querySelector(".readout").innerText];
      const before = read();
      svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      const moved = read();
      const box = svg.getBoundingClientRect();
      const spot = { clientX: box.left + box.width * 0.15, clientY: box.top + box.height / 2 };
      svg.dispatchEvent(new MouseEvent("click", spot));
      return { before, moved, clicked: read() };
    })()"""
    found = browser.visit(made_page.as_uri(), script).result
    for part in range(3):
        assert len({found["before"][part], found["moved"][part], found["clicked"][part]}) == 3
    assert float(found["clicked"][0]) < float(found["before"][0]) < float(found["moved"][0])


def test_the_script_draws_what_python_drew(browser, made_page):
    """The first region, chosen again by the reader, has the glow that the file came with."""
    script = """(async () => {
      const svg = document.querySelector("#attention-explorer svg"), heat = svg.querySelector(".heat");
      const pixels = async (href) => { const image = new Image(); image.src = href; await image.decode();
        const canvas = document.createElement("canvas"); canvas.width = image.width; canvas.height = image.height;
        const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
        return [...context.getImageData(0, 0, image.width, image.height).data].filter((_, i) => i % 4 === 3); };
      const before = await pixels(heat.getAttribute("href"));
      for (const key of ["ArrowRight", "ArrowLeft"]) svg.dispatchEvent(new KeyboardEvent("keydown", { key }));
      return [before, await pixels(heat.getAttribute("href"))];
    })()"""
    before, after = browser.visit(made_page.as_uri(), script).result
    assert len(before) == len(after) > 0
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= 2


def test_a_crop_can_be_heard(browser, made_page):
    """The button plays its crop, a line runs over the picture, and a second press stops it."""
    script = """(async () => {
      const button = document.querySelector(".play"), figure = button.closest("figure");
      const audio = figure.querySelector("audio"), line = figure.querySelector(".playhead");
      const read = () => [button.getAttribute("aria-pressed"), line.classList.contains("on")];
      // a busy machine must not come to look when the second of sound is over
      audio.playbackRate = 0.1;
      const started = new Promise((resolve) => audio.addEventListener("timeupdate", () => {
        if (audio.currentTime > 0.1) resolve(); }));
      button.click();
      await started;
      await new Promise(requestAnimationFrame);
      const during = [...read(), +line.getAttribute("x1") > 35, audio.duration];
      const stopped = new Promise((resolve) => audio.addEventListener("pause", resolve, { once: true }));
      button.click();
      await stopped;
      return [during, read()];
    })()"""
    (pressed, lit, moved, duration_s), after = browser.visit(made_page.as_uri(), script).result
    assert (pressed, lit, moved) == ("true", True, True)
    assert duration_s == pytest.approx(1.28, abs=0.15)
    assert after == ["false", False]


def test_it_prints(browser, made_page):
    """On paper the contents bar goes, folded parts open, nothing is cut off, and dark readers get white paper too."""
    script = """(() => { dispatchEvent(new Event("beforeprint"));
      return [getComputedStyle(document.querySelector(".contents")).display,
        [...document.querySelectorAll("details")].every((d) => d.open),
        getComputedStyle(document.body).backgroundColor, document.documentElement.scrollWidth <= innerWidth]; })()"""
    paper = View(width=794, height=1123, dark=True, media="print")  # A4 at 96 dots per inch
    assert browser.visit(made_page.as_uri(), script, view=paper).result == ["none", True, "rgb(255, 255, 255)", True]


def test_missing_inputs_are_named_with_the_commands_that_make_them(browser, own_run):
    """Each in its section's place; the rest of the page stands."""
    for name in ("results.jsonl", "metrics.jsonl", "export/model.safetensors"):
        (own_run / name).unlink()
    build_report(own_run)
    found = browser.visit((own_run / "report.html").as_uri(), READ)
    assert found.errors == []
    assert list(found.result["sections"]) == [key for key, _ in CONTENTS]
    for section, sentence, command in (
        ("probes", "the scores of the probes", "python -m distributed evaluate"),
        ("training", "the log of the training", "python -m distributed train"),
        ("collapse", "the diagnostics", "python -m distributed train"),
        ("attention", "the weights in export/", "python -m distributed export"),
    ):
        assert sentence in found.result["sections"][section]["text"]
        assert command in found.result["sections"][section]["text"]
    assert "Nothing to show yet" not in found.result["sections"]["music"]["text"]


def test_without_a_configuration_the_music_says_what_it_needs(bare_run):
    """The size of a crop and the masks are in config.yaml."""
    (bare_run / "config.yaml").unlink()
    build_report(bare_run)
    text = (bare_run / "report.html").read_text()
    assert "This section needs config.yaml of the run" in text
    assert "This section needs config.yaml, the resolved configuration" in text


def test_a_dead_store_costs_only_the_pictures(bare_run):
    """Shards that are gone (a server that was stopped) are named; curves and table stay."""
    page = build_report(bare_run, shards=str(bare_run / "nowhere"))
    text = unescape((bare_run / "report.html").read_text())
    assert page == f"{bare_run}/report.html"
    assert "no shard set at" in text
    assert "Training helped: 4 of 5 probes" in text


def test_facts_that_nobody_wrote_are_named(bare_run):
    """Never an invented number."""
    (bare_run / "facts.json").unlink()
    build_report(bare_run)
    assert (
        "Not recorded by this run: audio, tracks, shards, parameters, ranks" in (bare_run / "report.html").read_text()
    )


def test_a_run_that_reconstructs_says_so(bare_run):
    """Of a run of kind mae the page speaks of reconstructed patches where it speaks of predicted features otherwise."""
    texts = {}
    for kind in ("jepa", "mae"):
        config = (bare_run / "config.yaml").read_text().partition("\nobjective:")[0].rstrip()
        (bare_run / "config.yaml").write_text(f"{config}\nobjective:\n  kind: {kind}\n")
        build_report(bare_run)
        texts[kind] = " ".join(unescape((bare_run / "report.html").read_text()).split())
    for feature, patch in (
        ("<b>Predict</b> the features", "<b>Reconstruct</b> the spectrogram"),
        ("must predict the features of the veiled ones;", "the predictor must reconstruct the veiled ones;"),
        ("Distance between predicted and true features", "Distance between hidden patches and their reconstruction"),
        ("Share of the hidden features' variance", "Share of the hidden patches' variance"),
        ("if every patch had the same feature, the loss", "it can be good while the features are poor"),
    ):
        assert [feature in texts[kind] for kind in texts] == [True, False], feature
        assert [patch in texts[kind] for kind in texts] == [False, True], patch


def test_names_from_files_cannot_become_markup(bare_run):
    """A track or task called <script> is text."""
    rows = [json.loads(line) for line in (bare_run / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["task"] = "<script>alert(1)</script>"
    (bare_run / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    build_report(bare_run)
    assert "<script>alert" not in (bare_run / "report.html").read_text()


def test_secrets_in_the_configuration_are_hidden(bare_run):
    """None should be there; a page is passed on, so none may be."""
    with (bare_run / "config.yaml").open("a") as file:
        file.write("store:\n  url: http://user:hunter2@host/x\n  secret_key: hunter3\n")
    build_report(bare_run)
    assert "hunter" not in (bare_run / "report.html").read_text()


def test_the_command_writes_the_page_and_says_where(bare_run, capsys):
    """`python -m distributed report RUN_DIR`."""
    commands = {"report": Command("distributed.report.page", "the page")}
    assert (
        enter("distributed", commands, manual="", argv=["report", str(bare_run), "--out", str(bare_run / "a.html")])
        == 0
    )
    assert capsys.readouterr().out == f"{bare_run}/a.html\n"
    assert (bare_run / "a.html").is_file()


def test_a_wrong_run_directory_is_one_sentence(tmp_path, capsys):
    """Exit code 2, no traceback."""
    commands = {"report": Command("distributed.report.page", "the page")}
    assert enter("distributed", commands, manual="", argv=["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run directory")


def test_without_chromium_the_remedy_is_named(monkeypatch):
    """What to install, rather than a missing file."""
    monkeypatch.setattr(browser_module.shutil, "which", lambda name: None)
    with pytest.raises(BrowserError, match="apt-get install chromium"), Browser():
        pass
