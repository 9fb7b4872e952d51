(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("record").textContent);
  const byPath = new Map(data.targets.map((target) => [target.path, target]));
  const details = document.getElementById("details"), select = document.getElementById("block");
  function text(tag, content, kind) {
    const made = document.createElement(tag);
    made.textContent = content;
    if (kind) made.className = kind;
    return made;
  }
  function number(value) {
    if (value === null || value === undefined) return "–";
    return value !== 0 && Math.abs(value) < 0.01 ? Number(value).toExponential(2) : Number(value).toPrecision(3);
  }
  // A column of many blocks is narrow for a finger: buttons go to the block before and after.
  function steps(path) {
    const blocks = [...document.querySelectorAll("g[data-block]")], made = text("p", "", "steps");
    const at = blocks.findIndex((each) => each.dataset.block === path);
    for (const [said, to] of [["‹ before", at - 1], ["next ›", at + 1]]) {
      const button = text("button", said);
      button.type = "button";
      button.disabled = at < 0 || !blocks[to];
      button.addEventListener("click", () => {
        choose(blocks[to].dataset.block);
        const strip = blocks[to].closest(".scroll"), view = strip.getBoundingClientRect();
        const column = blocks[to].getBoundingClientRect();
        if (column.left < view.left || column.right > view.right) strip.scrollLeft += column.left - view.left - view.width / 2;
        details.querySelectorAll("button")[to < at ? 0 : 1].focus({ preventScroll: true });
        details.scrollIntoView({ block: "nearest" });
      });
      made.append(button);
    }
    return made;
  }
  function describe(path) {
    if (!details) return;
    details.replaceChildren(text("h3", path), steps(path));
    const target = byPath.get(path);
    if (!target) { details.append(text("p", "Not a target of its own.")); return; }
    const errors = [["error", "error"], ["entering", "entering"], ["at pictures", "pictures"], ["at text", "text"]]
      .filter(([, key]) => target[key] !== null).map(([said, key]) => said + " " + number(target[key])).join(", ");
    const counts = target.accepted + " steps accepted, " + target.rejected + " rejected";
    const time = target.resumed ? "from work_dir" : number(target.seconds) + " s";
    details.append(text("p", [errors, counts, time].filter((said) => said).join("; ")));
    const list = document.createElement("ul");
    for (const step of target.rejected_steps) list.append(text("li", "rejected: " + step));
    for (const [name, why] of Object.entries(target.to_nearest)) list.append(text("li", "to nearest: " + name + ", " + why));
    if (list.children.length) details.append(list);
  }
  function decode(weights) {
    const raw = atob(weights.codes), values = new Float32Array(raw.length);
    for (let i = 0; i < raw.length; i++) values[i] = raw.charCodeAt(i) / 255 * weights.most;
    return values;
  }
  function paint(path) {
    const found = data.token_weights[path] || {};
    document.querySelectorAll("[data-view]").forEach((figure) => {
      const index = figure.dataset.view, view = data.views[index];
      const values = found[index] ? decode(found[index]) : null;
      let most = 0;
      if (values) for (const value of values) most = Math.max(most, value);
      figure.querySelector(".words").classList.toggle("weighted", values !== null);
      figure.querySelectorAll(".words span[data-token]").forEach((word) => {
        const value = values ? values[word.dataset.token] / (most || 1) : 0;
        word.style.setProperty("--bar", Math.max(1, 14 * value) + "px");
        word.title = values ? "λ = " + number(values[word.dataset.token]) : "";
      });
      const canvas = figure.querySelector("canvas");
      if (!canvas || !view.grid) return;
      const [rows, columns] = view.grid, pen = canvas.getContext("2d");
      canvas.height = rows; canvas.width = columns;
      pen.clearRect(0, 0, columns, rows);
      if (!values) return;
      let top = 0;
      for (const token of view.picture_tokens) top = Math.max(top, values[token] || 0);
      view.picture_tokens.slice(0, rows * columns).forEach((token, at) => {
        pen.fillStyle = "rgba(255,122,0," + (0.85 * (values[token] || 0) / (top || 1)).toFixed(3) + ")";
        pen.fillRect(at % columns, Math.floor(at / columns), 1, 1);
      });
    });
  }
  function choose(path) {
    document.querySelectorAll("g[data-block]").forEach((each) => each.classList.toggle("chosen", each.dataset.block === path));
    describe(path);
    if (data.token_weights[path]) { if (select) select.value = path; paint(path); }
  }
  function show(path) {
    choose(path);
    if (details) details.scrollIntoView({ block: "nearest" });
  }
  document.querySelectorAll("[data-block]").forEach((each) => {
    each.addEventListener("click", () => show(each.dataset.block));
    each.addEventListener("keydown", (event) => { if (event.key === "Enter") show(each.dataset.block); });
  });
  if (select) select.addEventListener("change", () => choose(select.value));
  const first = select ? select.value : data.targets.length ? data.targets[0].path : "";
  if (first) choose(first);
}());
