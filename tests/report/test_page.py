"""The page: complete, small enough, safe whatever is in the record, and readable in a browser at two widths."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.report.reports import LIST, record
from transformers_qaig.report.page.charts import free_place
from transformers_qaig.report.page.page import page
from transformers_qaig.report.page.strips import CELL, LEAST, cell_width
from transformers_qaig.report.page.treemap import squarified, treemap
from transformers_qaig.report.record_file import RecordError, checked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u2028</style>"


def poisoned(value: Any, keep: tuple[str, ...] = ("kind", "codes", "pictures", "widths", "times", "averaged")) -> Any:
    """The same record with an attack in every free text, and in every key that is free."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in keep else poisoned(item) for key, item in value.items()}
    return value


def test_the_page_has_every_part_and_loads_nothing() -> None:
    text = page(checked(record(28)))
    parts = ("some/model", "Size", "Bits by layer", "Error by block", "knee: 3.10 bits", "this model: 3.20 bits")
    for said in (*parts, "Calibration data", "rotate mlp.down_proj", "process, after a target", "budget=3.2"):
        assert said in text, said
    assert not re.search(r'(src|href)=(?!"data:)', text)
    assert "default-src &#x27;none&#x27;" in text
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_94_blocks_of_experts_stay_below_5_megabytes() -> None:
    text = page(checked(record(94, experts=128)))
    assert len(text.encode()) < 5e6
    assert f'data-block="{LIST}.93"' in text


def test_nothing_in_a_record_becomes_markup() -> None:
    text = page(checked(poisoned(record(3))))
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</style>") == 1
    assert "\u2028" not in text.split('id="record">')[1].split("</script>")[0]
    assert text.count("<script") == text.count("</script>") == 2


def test_an_unfinished_run_says_how_far_it_is_and_loads_itself_anew() -> None:
    text = page(checked({**record(3), "targets_in_all": 9}))
    assert "3 of 9 targets done" in text
    assert 'http-equiv="refresh"' in text
    assert 'http-equiv="refresh"' not in page(checked(record(3)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "other"}, "`kind` must be 'transformers_qaig.report'"),
        ({"version": 99}, "`version` must be 1 at most, got 99. Install a newer"),
        ({"version": 0}, "`version` must be 1 or an earlier one, got 0."),
        ({"version": None}, "`version` must be 1 or an earlier one, got None."),
        ({"seconds": "1"}, "`seconds` must be a finite number or null, got '1'."),
        ({"layers": [{"block": "b", "name": "n", "widths": {"x": 1}}]}, "`layers[0].widths` must count weights"),
        ({"layers": [{"block": "b", "name": "n", "widths": {"0004000": 1}}]}, "`layers[0].widths` must count weights"),
        ({"prices": {"front": [[-1e308, 1, 1.0], [1e308, 2, 0.5]]}}, "`prices.front[0]` must be a finite number"),
        ({"views": [{"pictures": ['x"y']}]}, "`views[0].pictures[0]` must be base64"),
        ({"targets": [3]}, "`targets[0]` must be an object, got 3."),
        ({"targets": [{"damping": {"up": [0.1]}}]}, "`targets[0].damping['up']` must be 2 numbers, got [0.1]."),
        ({"prices": {"front": [[1, 2]]}}, "`prices.front[0]` must be 3 numbers"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=re.escape(said)):
        checked({**record(1), **change})


def test_text_of_a_record_is_escaped_where_it_is_read() -> None:
    found = checked({**record(1), "model": "\x1b[2J", "facts": [["a\x7f", "b"]]})
    assert (found["model"], found["facts"]) == (r"\x1b[2J", [[r"a\x7f", "b"]])


def test_a_record_with_little_in_it_makes_a_page() -> None:
    assert "Bits by layer" not in page(checked({"kind": "transformers_qaig.report", "version": 1}))
    unread = record(3)  # a recipe that reads no data measures no errors
    for target in unread["targets"]:
        target |= {"error": None, "entering": None, "pictures": None, "text": None}
    text = page(checked({**unread, "bytes_per_sample": 0}))
    assert "No error was measured" in text
    assert "Error by block" not in text
    assert "paused sample" not in text


def test_a_number_next_to_zero_is_zero() -> None:
    found = checked({**record(1), "prices": {"front": [[2, 1, 5e-324], [3, 2, 1.0]]}})
    assert found["prices"]["front"][0][2] == 0.0
    assert "What a bit buys" in page(found)


def test_a_treemap_fills_its_box_with_the_right_areas() -> None:
    boxes = squarified([6.0, 3.0, 2.0, 1.0], (0.0, 0.0, 40.0, 30.0))
    assert [w * h for _, _, w, h in boxes] == pytest.approx([600.0, 300.0, 200.0, 100.0])
    assert max(x + w for x, _, w, _ in boxes) == pytest.approx(40.0)


def browser(folder: Path, *options: str) -> str:
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=4000", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def shown_by_browser(file: Path, *options: str) -> Any:
    """What a page has put into its title, as JSON."""
    text = browser(file.parent, *options, "--dump-dom", f"file://{file}")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(
    ("width", "blocks", "experts"), [(400, 28, 0), pytest.param(400, 94, 128, marks=pytest.mark.slow), (1400, 94, 128)]
)
def test_a_browser_shows_it_without_scrolling_sideways(width: int, blocks: int, experts: int, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(checked(record(blocks, experts=experts))))
    # In a frame, because a window of a browser is never as narrow as a telephone.
    probe = f"""<iframe id=f src=page.html width={width} height=900></iframe><script>
    f.onload = () => {{
      const inside = f.contentDocument, cell = inside.querySelector('g[data-block$="layers.20"]');
      cell.dispatchEvent(new Event("click"));
      const beyond = [...inside.querySelectorAll("rect.packed, rect.plain")].flatMap((part) =>
        [...part.parentElement.querySelectorAll("text")].filter((text) =>
          text.getBBox().x + text.getBBox().width > part.getBBox().x + part.getBBox().width)
        .map((text) => text.textContent));
      const broken = [...inside.querySelectorAll(".run")].filter((run) => run.getClientRects().length > 1).length;
      const told = inside.getElementById("details").textContent;
      const [before, next] = inside.querySelectorAll("#details button");
      next.click();
      const marked = getComputedStyle(inside.querySelector('g[data-block$="layers.21"] rect')).stroke;
      const after = inside.querySelector("#details h3").textContent;
      inside.querySelectorAll("#details button")[0].click();
      document.title = JSON.stringify({{beyond, broken, told, after, marked,
        wide: inside.documentElement.scrollWidth, strip: inside.querySelector(".strip svg").clientWidth,
        chosen: inside.getElementById("block").value, canvas: inside.querySelector("canvas").width}});
      document.body.textContent = document.title;
    }}</script>"""
    (tmp_path / "probe.html").write_text(f"<!doctype html><body>{probe}</body>")
    found = shown_by_browser(tmp_path / "probe.html")
    assert found["wide"] <= width
    assert found["beyond"] == []  # names that leave their part of the treemap
    assert found["broken"] == 0  # placeholders of pictures on two lines
    assert found["strip"] <= 1000  # no scrolling on a wide screen
    assert found["chosen"] == f"{LIST}.20"
    assert f"{LIST}.20" in found["told"]
    assert "rejected: rotate mlp.down_proj" in found["told"]
    assert found["after"] == f"{LIST}.21"  # the button goes to the next block, and its column is marked
    assert found["marked"] != "none"
    assert found["canvas"] == 16


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_first_block_at_once(tmp_path: Path) -> None:
    unread = record(3, weighs_tokens=False)
    for target in unread["targets"]:
        target |= {"error": None, "entering": None, "pictures": None, "text": None}
    script = "document.title = JSON.stringify(document.getElementById('details').innerText)"
    text = page(checked(unread)).replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(re.sub("<meta http-equiv.*?>", "", text))
    told = shown_by_browser(tmp_path / "page.html")
    assert told.startswith(f"{LIST}.0")
    assert "\n8 steps accepted, 1 rejected; 30.0 s" in told  # and nothing of errors that were not measured


# For every text: its colour against what it stands on. In a drawing that is a part of the treemap, or the card.
CONTRAST = """<script>addEventListener("load", () => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (colour) => { const [r, g, b] = rgb(colour).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const below = (node) => { for (; node; node = node.parentElement) {
    const [r, g, b, a] = rgb(getComputedStyle(node).backgroundColor);
    if (a !== 0) return `rgb(${r}, ${g}, ${b})`;
  } };
  const part = (text) => { const kind = [...text.classList].find((c) => c.startsWith("on-"));
    return kind && getComputedStyle(document.querySelector("rect." + kind.slice(3))).fill; };
  const found = [];
  for (const node of document.querySelectorAll("body *:not(script):not(option)")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    const drawn = node.closest("svg"), style = getComputedStyle(node);
    if (drawn && node.tagName !== "text") continue;
    const one = light(drawn ? style.fill : style.color), other = light((drawn && part(node)) || below(node));
    found.push([(Math.max(one, other) + .05) / (Math.min(one, other) + .05), node.textContent.slice(0, 40)]);
  }
  document.title = JSON.stringify(found.sort((a, b) => a[0] - b[0]).slice(0, 3).concat([[found.length, "texts"]]));
})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_browser_shows_readable_text_in_light_and_dark(scheme: str, tmp_path: Path) -> None:
    text = page(checked(record(28, experts=128)))
    file = tmp_path / "page.html"
    file.write_text(re.sub("<meta http-equiv.*?>", "", text).replace("</body>", f"{CONTRAST}</body>"))
    setting = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    *worst, (count, _) = shown_by_browser(file, setting)
    assert count > 200
    assert worst[0][0] >= 4.5, worst
    browser(tmp_path, setting, "--window-size=1400,900", f"--screenshot={tmp_path / 'page.png'}", f"file://{file}")
    with Image.open(tmp_path / "page.png") as shot:
        grey = shot.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert (grey < 80) if scheme == "dark" else (grey > 200)


def test_many_blocks_have_narrow_columns_that_can_still_be_hit() -> None:
    assert [cell_width(blocks) for blocks in (1, 28, 94, 1000)] == [CELL, CELL, 10, LEAST]


def test_parts_are_named_by_what_fits() -> None:
    sizes = [{"name": "model.embed_tokens", "bits": [], "before": 9, "after": 9}]
    assert ">model.embed_tokens<" in treemap(sizes)
    sizes = [{"name": f"model.{kind}.embed_tokens", "bits": [], "before": 9, "after": 9} for kind in "abcdefgh"]
    assert ">embed_tokens<" in treemap(sizes)


@pytest.mark.parametrize(
    ("x", "y", "covered"),
    [
        (100.0, 100.0, [(110.0 + 4 * k, 90.0 + 4 * k) for k in range(40)]),  # a falling line on its right
        (30.0, 100.0, []),  # at the left edge
        (390.0, 20.0, [(385.0, 30.0)]),  # at the right edge, near the top
        (200.0, 120.0, [(200.0 + dx, 120.0 + dy) for dx in (30, -30) for dy in (-14, 18, -30)]),  # one place is free
    ],
)
def test_a_label_covers_nothing_and_stays_in_the_chart(x: float, y: float, covered: list[tuple[float, float]]) -> None:
    left, top, right, bottom = free_place(x, y, "knee: 3.10 bits", (20.0, 400.0), covered).box("knee: 3.10 bits")
    assert left >= 20
    assert right <= 400
    assert top >= 0
    assert not any(left < px < right and top < py < bottom for px, py in covered)
