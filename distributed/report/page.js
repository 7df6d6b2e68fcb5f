"use strict";
(() => {
  const charts = [...document.querySelectorAll("#training svg.chart, #collapse svg.chart")].map(chartOf);
  const others = [...document.querySelectorAll("svg.chart")].filter((svg) => !charts.some((c) => c.svg === svg)).map(chartOf);

  function chartOf(svg) {
    const figure = svg.closest("figure");
    return {
      svg,
      points: JSON.parse(svg.dataset.points),
      line: svg.querySelector(".crosshair"),
      values: [...figure.querySelectorAll("[data-series]")],
    };
  }

  // every chart of the run shows its values at one and the same step; `x` null puts the last values back
  function show(group, x) {
    for (const { points, line, values } of group) {
      line.classList.toggle("on", x !== null && x >= points.x0 && x <= points.x1);
      if (x !== null) {
        const at = points.left + ((x - points.x0) / (points.x1 - points.x0)) * (points.right - points.left);
        line.setAttribute("x1", at);
        line.setAttribute("x2", at);
      }
      points.series.forEach((series, i) => {
        values[i].textContent = x === null ? values[i].dataset.last : series.y[nearest(series.x, x)];
      });
    }
  }

  function nearest(sorted, x) {
    let best = 0;
    sorted.forEach((value, i) => { if (Math.abs(value - x) < Math.abs(sorted[best] - x)) best = i; });
    return best;
  }

  function follow(group) {
    for (const chart of group) {
      const { svg, points } = chart;
      let step = null;
      const move = (event) => {
        const box = svg.getBoundingClientRect();
        const unit = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
        const share = Math.min(1, Math.max(0, (unit - points.left) / (points.right - points.left)));
        step = points.x0 + share * (points.x1 - points.x0);
        show(group, step);
      };
      const leave = () => { step = null; show(group, null); };
      svg.addEventListener("pointermove", move);
      svg.addEventListener("pointerdown", move);
      svg.addEventListener("pointerleave", leave);
      svg.addEventListener("blur", leave);
      svg.addEventListener("keydown", (event) => {
        const longest = points.series.reduce((a, s) => (s.x.length > a.length ? s.x : a), []);
        const now = step === null ? longest.length - 1 : nearest(longest, step);
        const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: longest.length - 1 }[event.key];
        if (event.key === "Escape") leave();
        if (next === undefined) return;
        event.preventDefault();
        step = longest[Math.min(Math.max(next, 0), longest.length - 1)];
        show(group, step);
      });
    }
  }
  follow(charts);
  others.forEach((chart) => follow([chart]));

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // draws a map of values in 0..1, [steps][bands], as the same amber glow that the page was made with
  function glow(image, values, steps, bands) {
    const canvas = document.createElement("canvas");
    canvas.width = steps;
    canvas.height = bands;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(steps, bands);
    for (let t = 0; t < steps; t++) {
      for (let f = 0; f < bands; f++) {
        const value = Math.min(1, Math.max(0, values[t * bands + f]));
        const at = ((bands - 1 - f) * steps + t) * 4;
        pixels.data.set([255, 150 + 80 * value, 20 + 60 * value, 235 * value], at);
      }
    }
    context.putImageData(pixels, 0, 0);
    image.setAttribute("href", canvas.toDataURL());
  }

  // a picture on which a cell of a grid is chosen by pointer or arrow keys
  function choose(figure, columns, rows, start, draw) {
    const svg = figure.querySelector("svg");
    const { left, top, width, height } = JSON.parse(svg.dataset.plot);
    let [column, row] = start;
    const set = (c, r) => {
      column = Math.min(columns - 1, Math.max(0, c));
      row = Math.min(rows - 1, Math.max(0, r));
      draw(column, row);
    };
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const x = ((event.clientX - box.left) * scale - left) / width;
      const y = 1 - ((event.clientY - box.top) * scale - top) / height;
      set(Math.floor(x * columns), Math.floor(y * rows));
    });
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!move) return;
      event.preventDefault();
      set(column + move[0], row + move[1]);
    });
  }

  function frame(svg, step, steps, band, bands, grid) {
    const { left, top, width, height } = JSON.parse(svg.dataset.plot);
    const rect = svg.querySelector(".region");
    rect.setAttribute("x", left + (step / grid[0]) * width);
    rect.setAttribute("y", top + height - ((band + bands) / grid[1]) * height);
    rect.setAttribute("width", (steps / grid[0]) * width);
    rect.setAttribute("height", (bands / grid[1]) * height);
  }

  const attention = document.querySelector("#attention-explorer");
  if (attention) {
    const { grid, tiles, size, start, maps, readouts } = JSON.parse(attention.dataset.maps);
    const data = bytes(maps);
    const cells = grid[0] * grid[1];
    choose(attention, tiles[0], tiles[1], start, (column, row) => {
      const tile = column * tiles[1] + row;
      const svg = attention.querySelector("svg");
      glow(svg.querySelector(".heat"), Float32Array.from(data.subarray(tile * cells, (tile + 1) * cells), (v) => v / 255), ...grid);
      frame(svg, column * size[0], size[0], row * size[1], size[1], grid);
      attention.querySelector(".readout").textContent = readouts[tile];
    });
  }

  // one crop is heard at a time; a line runs over its picture
  for (const button of document.querySelectorAll(".play")) {
    const figure = button.closest("figure");
    const audio = figure.querySelector("audio");
    const line = figure.querySelector(".playhead");
    const from = +line.getAttribute("x1");
    const run = () => {
      const at = from + (audio.duration ? audio.currentTime / audio.duration : 0) * line.dataset.width;
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      if (!audio.paused) requestAnimationFrame(run);
    };
    const show = (on) => {
      button.setAttribute("aria-pressed", on);
      line.classList.toggle("on", on);
    };
    button.addEventListener("click", () => {
      if (!audio.paused) { audio.pause(); return; }
      document.querySelectorAll("audio").forEach((other) => other.pause());
      audio.currentTime = 0;
      audio.play();
    });
    audio.addEventListener("play", () => { show(true); run(); });
    audio.addEventListener("pause", () => show(false));
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));

  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a) => { a.classList.remove("here"); a.removeAttribute("aria-current"); });
      links.get(entry.target.id).classList.add("here");
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
})();
