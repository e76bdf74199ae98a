"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const slider = $("#threshold"), showLow = $("#show-low"), dialog = $("#large"), toast = $("[data-toast]");
  const cards = $$("[data-card]");
  const scale = [[255, 236, 120], [254, 178, 60], [240, 70, 40], [160, 0, 30]]; // as in the pictures of `regions`
  const mm2 = (um2) => um2 === 0 ? "0" : um2 >= 1e4 ? `${(um2 / 1e6).toFixed(3)} mm²` : `${Math.round(um2).toLocaleString("en")} µm²`;
  let votes = Number(slider.value);

  // A slide is positive if a place reaches the threshold, over the smallest lesion area if there is one.
  const isPositive = (slide) => slide.max >= votes && (data.minArea === 0 || slide.largest[votes - 1] >= data.minArea);

  const colour = (share) => {
    const at = share * (scale.length - 1), low = Math.min(Math.floor(at), scale.length - 2), rest = at - low;
    return scale[low].map((value, index) => Math.round(value + rest * (scale[low + 1][index] - value)));
  };

  // The votes of a slide, read once from its grey picture. The pictures load with the page: what is printed can't wait.
  const pictures = new WeakMap(), grids = new WeakMap();
  for (const canvas of $$(".gallery canvas")) {
    const image = new Image();
    image.src = canvas.dataset.votes;
    pictures.set(canvas, image);
  }
  const readVotes = (canvas) => {
    if (!grids.has(canvas)) {
      const image = pictures.get(canvas), sheet = document.createElement("canvas");
      sheet.width = image.naturalWidth; sheet.height = image.naturalHeight;
      const context = sheet.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, sheet.width, sheet.height).data, step = Number(canvas.dataset.step);
      const grid = new Uint8Array(sheet.width * sheet.height);
      for (let index = 0; index < grid.length; index++) grid[index] = Math.round(pixels[4 * index] / step);
      grids.set(canvas, grid);
    }
    return grids.get(canvas);
  };

  const paint = (canvas, source = canvas) => {
    const state = `${votes}/${showLow.checked}`;
    if (canvas.dataset.state === state) return;
    const image = pictures.get(source);
    if (!image.complete) { image.addEventListener("load", () => paint(canvas, source), { once: true }); return; }
    canvas.dataset.state = state;
    const grid = readVotes(source), levels = Number(source.dataset.levels);
    // A slide scored at another stride has other levels; the threshold is a share of them.
    const least = Math.max(1, Math.ceil(votes / data.levels * levels - 1e-9));
    const colours = Array.from({ length: levels + 1 }, (_, level) =>
      level >= least ? [...colour(level / levels), 165] : level > 0 && showLow.checked ? [...colour(level / levels), 60] : [0, 0, 0, 0]);
    const context = canvas.getContext("2d"), picture = context.createImageData(canvas.width, canvas.height);
    for (let index = 0; index < grid.length; index++) picture.data.set(colours[Math.min(grid[index], levels)], 4 * index);
    context.putImageData(picture, 0, 0);
  };

  // Only what is on the screen is painted: a report may hold hundreds of slides.
  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { visible.add(entry.target); paint(entry.target); } else visible.delete(entry.target);
    }
  }, { rootMargin: "300px" });
  const canvases = $$(".gallery canvas");
  canvases.forEach((canvas) => watcher.observe(canvas));

  const count = () => {
    const counts = {};
    for (const slide of data.slides) {
      const of = counts[slide.set] ??= { tp: 0, fn: 0, tn: 0, fp: 0, reach: { positive: 0, negative: 0 }, all: { positive: 0, negative: 0 } };
      if (!slide.tissue) continue;
      const positive = isPositive(slide);
      of[slide.truth === "positive" ? (positive ? "tp" : "fn") : (positive ? "fp" : "tn")]++;
      of.all[slide.truth]++;
      if (slide.max >= votes) of.reach[slide.truth]++;
    }
    return counts;
  };

  const update = () => {
    votes = Number(slider.value);
    const score = (votes / data.levels).toFixed(4), text = `${votes}/${data.levels} = ${score}`;
    $("[data-level-text]").textContent = text;
    slider.setAttribute("aria-valuetext", `${votes} of ${data.levels}, a score of ${score}`);
    $$("[data-score]").forEach((span) => { span.textContent = text; });
    const counts = count();
    for (const cell of $$("[data-count]")) {
      const set = cell.dataset.of, key = cell.dataset.count, level = (data.sweep[set] ?? [])[votes - 1] ?? {};
      cell.textContent = counts[set] && key in counts[set] ? counts[set][key] : level[key] ?? "none";
    }
    $("[data-live]").textContent = Object.entries(counts).map(([set, of]) =>
      `${set}: ${of.tp} of ${of.tp + of.fn} positive found, ${of.fp} of ${of.tn + of.fp} negative called positive`).join(" · ");
    for (const dot of $$("[data-roc]")) {
      const of = counts[dot.dataset.roc];
      if (!of) continue;
      dot.setAttribute("cx", data.side * of.reach.negative / Math.max(1, of.all.negative));
      dot.setAttribute("cy", data.side * (1 - of.reach.positive / Math.max(1, of.all.positive)));
    }
    const line = $("[data-threshold]");
    if (line) {
      const width = line.ownerSVGElement.viewBox.baseVal.width - 8, x = votes * width / (data.levels + 1);
      line.setAttribute("x1", x); line.setAttribute("x2", x);
    }
    $$("[data-level]").forEach((row) => row.classList.toggle("current", Number(row.dataset.level) === votes));
    cards.forEach((card, index) => {
      const slide = data.slides[index], call = !slide.tissue ? "no tissue" : isPositive(slide) ? "positive" : "negative";
      const wrong = slide.tissue && call !== slide.truth;
      card.classList.toggle("wrong", wrong);
      $("[data-call]", card).textContent = `AI: ${call}`;
      $("[data-verdict]", card).textContent = wrong ? (slide.truth === "positive" ? "missed" : "false alarm") : "";
      $("[data-area]", card).textContent = mm2(slide.area[votes - 1]);
      const dice = $("[data-dice]", card), both = slide.area[votes - 1] + slide.truthArea;
      if (dice) dice.textContent = both > 0 ? (2 * slide.overlap[votes - 1] / both).toFixed(3) : "none";
    });
    visible.forEach((canvas) => paint(canvas));
    filter();
    if (dialog.open) fillLarge();
  };

  const filter = () => {
    const wanted = $("input[name=filter]:checked").value;
    let shown = 0;
    for (const card of cards) {
      const show = wanted === "all" || (wanted === "wrong" ? card.classList.contains("wrong") : card.dataset.set === wanted);
      card.hidden = !show;
      shown += show;
    }
    $("[data-shown]").textContent = `${shown} of ${cards.length} slides`;
  };

  const say = (text) => {
    toast.textContent = text;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => { toast.textContent = ""; }, 1800);
  };
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // A browser that lets files use no clipboard.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) { say("This browser copies nothing from files; select the text instead"); return; }
    }
    say("Copied");
  };

  let large = 0;
  const fillLarge = () => {
    const card = cards[large], view = $(".view", card), room = $("[data-large-view]");
    $("[data-large-name]").textContent = $("h3", card).textContent;
    $("[data-large-call]").textContent = `${$(".badge", card).textContent} · ${$("[data-call]", card).textContent}`;
    if (room.dataset.of !== String(large)) {
      room.dataset.of = large;
      room.replaceChildren(...[...view.children].filter((child) => !child.matches("button")).map((child) => child.cloneNode(true)));
      const image = $("img", room);
      room.style.aspectRatio = `${image.getAttribute("width")} / ${image.getAttribute("height")}`;
      room.style.maxWidth = `calc(84vh * ${image.getAttribute("width")} / ${image.getAttribute("height")})`;
      delete $("canvas", room).dataset.state;
    }
    paint($("canvas", room), $("canvas", view));
  };
  const stepLarge = (by) => {
    const choice = cards.map((card, index) => index).filter((index) => !cards[index].hidden && $("canvas", cards[index]));
    const at = choice.indexOf(large);
    if (choice.length) { large = choice[(at + by + choice.length) % choice.length]; fillLarge(); }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.copy !== undefined) copy(button.dataset.copy);
    if (button.dataset.enlarge !== undefined) { large = Number(button.dataset.enlarge); dialog.showModal(); fillLarge(); }
    if (button.dataset.largeStep) stepLarge(Number(button.dataset.largeStep));
    if (button.dataset.largeClose !== undefined) dialog.close();
    if (button.id === "reset") { slider.value = data.votes; update(); }
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") stepLarge(-1);
    if (event.key === "ArrowRight") stepLarge(1);
  });
  slider.addEventListener("input", update);
  showLow.addEventListener("change", () => { visible.forEach((canvas) => paint(canvas)); if (dialog.open) fillLarge(); });
  $$("input[name=filter]").forEach((choice) => choice.addEventListener("change", filter));
  // On paper every slide has its colours, and every picture is there.
  addEventListener("beforeprint", () => { $$("img").forEach((image) => { image.loading = "eager"; }); canvases.forEach((canvas) => paint(canvas)); });
  update();
  document.documentElement.dataset.ready = "yes";
})();
