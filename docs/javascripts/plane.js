"use strict";
// The figure on the first page: draws what plane_math.js computes for the points of plane_data.js.

(function () {
  const host = document.getElementById("plane");
  const math = self.planeMath;
  const sets = self.planeData;
  if (!host || !math || !sets) return;

  const EDGE = 4; // of the plane, from the middle
  const LEAST_TIME = 0.02; // for the network: at t = 0 nothing is mixed
  const LATTICE = 44; // cells of the map of what the network expects, from end to end
  const STARTS = 72;
  const STEPS = 60;
  const BATCHES = 400; // that the density of assignment is counted over
  const MOST_NOISES = 64; // that KNN chooses from
  const LEVELS = Array.from({ length: 21 }, (_, i) => Math.max(i / 20, LEAST_TIME));
  const LIGHT = ["#0072b2", "#e08e00", "#009e73", "#c8609d", "#59636e", "#c9b800", "#3fa7e0", "#d55e00"];
  const DARK = ["#3f9fe0", "#f0ab2e", "#2cc79b", "#e48fc0", "#a9b4bf", "#f0e442", "#8dd3ff", "#ff8040"];
  const SEE = {
    pairs: {
      independent: "No pairing: every point is sent to noise on all sides. The lines cross, so one place x_t may come from nearly any point. Choose another coupling and watch them untangle.",
      knn: "Each point takes the nearest of k noises, on its own, so the lines cross less. The noise is no longer N(0, I): it is shorter and drawn toward the data.",
      assignment: "The 128 noises are given out one to one at least total squared distance. Lines hardly cross, and all noises together are still N(0, I).",
      shuffled: "The control: the noises that KNN chose, given to other points. The noise has changed as with KNN, but nothing is paired.",
    },
    network: {
      independent: "Arrows: where the best possible network goes from x_t. Color: the group it expects, the stronger the surer. Near t = 1 noise says nothing and all arrows aim at the mean of the data.",
      knn: "Even at t = 1 a noise tells of its point, the more the larger k: the colors begin there, and arrows lean to the nearest group instead of the mean.",
      assignment: "At t = 1 a noise already belongs to one of about eight points, so the network can aim at the right group from the start.",
      shuffled: "At t = 1 the colors are gone, as without any coupling: what KNN gained there came from pairing, not from the changed noise.",
    },
    sampling: {
      independent: "Sampling follows those arrows from N(0, I). Paths run to the middle first and turn late, so a sampler with few steps misses.",
      knn: "Paths turn less, and two Euler steps end nearer. The noise of training is not N(0, I), the less so the larger k: start from that noise instead, which is what matched init noise is for.",
      assignment: "Paths are nearly straight, so that a few steps suffice, and they start from the noise of training.",
      shuffled: "The pairing is gone and paths turn again, with a large k far more than without a coupling: the changed noise alone does harm.",
    },
  };
  const MEANING = {
    independent: "any noise, any point",
    knn: "the nearest of k noises",
    assignment: "the best one-to-one pairs of 128",
    shuffled: "the control: KNN's noises, given to other points",
  };
  const NAMES = { independent: "Independent", knn: "KNN", assignment: "Assignment", shuffled: "Shuffled KNN" };

  // The page

  const radios = (name, entries, chosen) =>
    entries
      .map(
        ([value, text]) =>
          `<label><input type="radio" name="plane-${name}" value="${value}"${value === chosen ? " checked" : ""}>` +
          `<span>${text}</span></label>`,
      )
      .join("");
  host.innerHTML = `
    <div class="plane-stage">
      <fieldset class="plane-choice plane-views"><legend class="plane-hidden">View</legend>${radios(
        "view",
        [["pairs", "Pairs"], ["network", "Best network"], ["sampling", "Sampling"]],
        "pairs",
      )}</fieldset>
      <canvas class="plane-canvas" tabindex="0" role="img" aria-describedby="plane-see"
        aria-label="The plane of data and noise. Arrow keys move the point that is asked about."></canvas>
      <div class="plane-time">
        <button type="button" class="plane-play" aria-label="Play time"></button>
        <label><span class="plane-hidden">Time t, from 0, data, to 1, noise</span>
          <input type="range" name="plane-t" min="0" max="1" step="0.01" value="0.6"></label>
        <output class="plane-t"></output>
        <span class="plane-ends" aria-hidden="true"><span>t = 0, data</span><span>t = 1, noise</span></span>
      </div>
    </div>
    <div class="plane-side">
      <fieldset class="plane-choice"><legend>Coupling: <em class="plane-meaning"></em></legend>
        ${radios("coupling", Object.entries(NAMES), "independent")}</fieldset>
      <label class="plane-k"><span>k = <output></output></span>
        <input type="range" name="plane-k" min="1" max="${Math.log2(MOST_NOISES)}" step="1" value="4"></label>
      <fieldset class="plane-choice plane-start"><legend>Sampling starts from</legend>${radios(
        "start",
        [["normal", "N(0, I)"], ["training", "the noise of training"]],
        "normal",
      )}</fieldset>
      <p class="plane-see" id="plane-see"></p>
      <table class="plane-numbers"><thead><tr><th></th><th scope="col">this</th><th scope="col">independent</th></tr>
        </thead><tbody></tbody></table>
      <div class="plane-curve"><p>Points mixed at x<sub>t</sub>, by t</p><svg viewBox="0 0 420 130"
        role="img" aria-label="Number of points mixed by time, this coupling and independent"></svg></div>
      <fieldset class="plane-choice plane-sets"><legend>Data: 128 points</legend>${radios(
        "set",
        Object.entries(sets).map(([name, set]) => [name, set.title]),
        "eight_gaussians",
      )}</fieldset>
      <p class="plane-foot"><button type="button" class="plane-draw">Draw new noise</button>
        <span class="plane-note"></span><span class="plane-hidden" role="status"></span></p>
    </div>`;
  const find = (selector) => host.querySelector(selector);
  const canvas = find("canvas");
  const context = canvas.getContext("2d");
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // What is computed

  const state = { set: "eight_gaussians", coupling: "independent", k: 16, t: 0.6, view: "pairs", start: "normal", seed: 1 };
  let probe = null; // x_t that is asked about
  let moving = null; // noise on its way to another coupling's
  let playing = 0;
  let now; // what belongs to the state
  let plain; // the same without pairing
  const counted = {}; // densities of assignment by set

  const points = () => sets[state.set].points;
  const normal = math.gaussian(STARTS, math.uniform(99));

  /** The noise of every point. */
  function pairNoise(coupling, seed = state.seed) {
    const x = points();
    const count = x.length / 2;
    const draw = math.uniform(seed);
    const candidates = Array.from({ length: MOST_NOISES }, () => math.gaussian(count, draw));
    if (coupling === "independent") return candidates[0];
    if (coupling === "assignment") return math.assignNoise(x, candidates[0]);
    const noise = Float64Array.from(candidates[0]);
    const far = (n, i) => (n[2 * i] - x[2 * i]) ** 2 + (n[2 * i + 1] - x[2 * i + 1]) ** 2;
    for (const other of candidates.slice(1, state.k)) {
      for (let i = 0; i < count; i++) {
        if (far(other, i) < far(noise, i)) noise.set(other.subarray(2 * i, 2 * i + 2), 2 * i);
      }
    }
    if (coupling === "knn") return noise;
    const order = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const j = Math.floor(draw() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return noise.map((_, at) => noise[2 * order[at >> 1] + (at & 1)]);
  }

  function densityOf(coupling) {
    if (coupling === "knn") return math.knnDensity(points(), state.k);
    if (coupling === "shuffled") return math.shuffledDensity(points(), math.knnDensity(points(), state.k));
    if (coupling !== "assignment") return math.independentDensity();
    if (!counted[state.set]) counted[state.set] = math.assignmentDensity(points());
    return counted[state.set];
  }

  /** Where sampling starts, of N(0, I) or of noise as in training, of points of all groups. */
  function startNoise(coupling) {
    if (state.start === "normal") return normal;
    const noise = pairNoise(coupling, 12345);
    return normal.map((_, at) => noise[2 * ((37 * (at >> 1)) % (noise.length / 2)) + (at & 1)]);
  }

  /** Figures and paths of a density. */
  function measured(coupling, density, noise) {
    const starts = startNoise(coupling);
    const paths = [];
    let square = 0;
    for (let i = 0; i < 2 * STARTS; i += 2) {
      const path = math.samplingPath(density, points(), starts[i], starts[i + 1], STEPS);
      const [x, y] = math.eulerEnd(density, points(), starts[i], starts[i + 1], 2);
      square += (x - path[2 * STEPS]) ** 2 + (y - path[2 * STEPS + 1]) ** 2;
      paths.push(path);
    }
    return {
      density,
      noise,
      paths,
      curve: LEVELS.map((t) => math.meanEffective(density, points(), noise, t)),
      distance: math.meanDistance(points(), noise),
      longer: math.straightness(paths) - 1,
      miss: Math.sqrt(square / STARTS),
    };
  }

  /** Compute anew what belongs to the state; the noise moves there. */
  function compute() {
    const before = now && now.noise.length === points().length ? shownNoise() : null;
    const noise = pairNoise(state.coupling);
    now = measured(state.coupling, densityOf(state.coupling), noise);
    const key = [state.set, state.start, state.seed].join();
    if (!plain || plain.key !== key) {
      plain = { key, ...measured("independent", densityOf("independent"), pairNoise("independent")) };
    }
    if (state.coupling === "assignment") setTimeout(count, 30, now.density);
    moving = before && !still.matches ? { from: before, start: performance.now() } : null;
    refresh();
  }

  /** Count more batches for the density of assignment, while it is looked at. */
  function count(density) {
    if (density !== now.density || density.batches >= BATCHES) return;
    const end = performance.now() + 30;
    const before = density.batches;
    while (density.batches < BATCHES && performance.now() < end) {
      density.add(math.gaussian(points().length / 2 - 1, math.uniform(1000 + density.batches)));
    }
    if (Math.floor(density.batches / 50) > Math.floor(before / 50)) {
      Object.assign(now, measured("assignment", density, now.noise));
      refresh();
    }
    setTimeout(count, 10, density);
  }

  function shownNoise() {
    if (!moving) return now.noise;
    const share = Math.min((performance.now() - moving.start) / 500, 1);
    if (share === 1) moving = null;
    const eased = share * share * (3 - 2 * share);
    return share === 1 ? now.noise : now.noise.map((value, i) => value + (1 - eased) * (moving.from[i] - value));
  }

  const time = () => Math.max(state.t, LEAST_TIME);
  const ask = (x, y, weights) => math.posterior(now.density, points(), x, y, time(), weights);

  // Drawing

  let size = 0;
  let colors;
  let ink;
  let paper;
  let waiting = false;

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      render();
      if (moving || playing) draw();
    });
  }

  const across = (x) => ((x / EDGE + 1) * size) / 2;
  const down = (y) => ((1 - y / EDGE) * size) / 2;
  const unit = () => size / 560;

  function dot(x, y, radius, fill, stroke) {
    context.beginPath();
    context.arc(across(x), down(y), radius * Math.max(unit(), 0.65), 0, 2 * Math.PI);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    if (stroke) {
      context.strokeStyle = stroke;
      context.stroke();
    }
  }

  function line(coordinates, color, width, alpha) {
    context.globalAlpha = alpha;
    context.strokeStyle = color;
    context.lineWidth = width * Math.max(unit(), 0.7);
    context.beginPath();
    for (let i = 0; i < coordinates.length; i += 2) context.lineTo(across(coordinates[i]), down(coordinates[i + 1]));
    context.stroke();
    context.globalAlpha = 1;
  }

  const colorOf = (i) => colors[sets[state.set].group[i] % colors.length];

  function nearest(x, y) {
    const data = points();
    let best = 0;
    for (let i = 1; i < data.length / 2; i++) {
      const far = (j) => (data[2 * j] - x) ** 2 + (data[2 * j + 1] - y) ** 2;
      if (far(i) < far(best)) best = i;
    }
    return best;
  }

  function render() {
    step();
    const ratio = Math.min(devicePixelRatio || 1, 2);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size, size);
    context.lineCap = context.lineJoin = "round";
    dotted(1);
    dotted(2);
    ({ pairs: drawPairs, network: drawNetwork, sampling: drawSampling })[state.view]();
    const data = points();
    context.lineWidth = 1;
    for (let i = 0; i < data.length / 2; i++) dot(data[2 * i], data[2 * i + 1], 3.6, colorOf(i), paper);
    if (probe) drawProbe();
  }

  /** Circle of N(0, I). */
  function dotted(radius) {
    context.setLineDash([2, 5]);
    context.lineWidth = 1;
    context.globalAlpha = 0.35;
    context.beginPath();
    context.arc(across(0), down(0), (radius / EDGE) * (size / 2), 0, 2 * Math.PI);
    context.strokeStyle = ink;
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  function drawPairs() {
    const data = points();
    const noise = shownNoise();
    const at = math.mix(data, noise, state.t);
    for (let i = 0; i < data.length; i += 2) {
      line([data[i], data[i + 1], noise[i], noise[i + 1]], colorOf(i / 2), 1.1, 0.45);
      context.lineWidth = 1;
      dot(noise[i], noise[i + 1], 2.2, paper, colorOf(i / 2));
    }
    for (let i = 0; i < data.length; i += 2) dot(at[i], at[i + 1], 4, colorOf(i / 2), ink);
  }

  const chart = document.createElement("canvas");
  chart.width = chart.height = LATTICE + 1;

  function drawNetwork() {
    const { group, groups } = sets[state.set];
    const weights = new Float64Array(group.length);
    const pixels = chart.getContext("2d").createImageData(LATTICE + 1, LATTICE + 1);
    const arrows = [];
    const chance = new Float64Array(groups);
    for (let row = 0; row <= LATTICE; row++) {
      for (let column = 0; column <= LATTICE; column++) {
        const x = ((2 * column) / LATTICE - 1) * EDGE;
        const y = (1 - (2 * row) / LATTICE) * EDGE;
        const mean = ask(x, y, weights);
        chance.fill(0);
        for (let i = 0; i < weights.length; i++) chance[group[i]] += weights[i];
        const best = chance.indexOf(Math.max(...chance));
        const sure = Math.max(0, (chance[best] - 1 / groups) / (1 - 1 / groups));
        const [red, green, blue] = rgb(colors[best % colors.length]);
        pixels.data.set([red, green, blue, 150 * sure], 4 * (row * (LATTICE + 1) + column));
        if (row % 2 === 0 && column % 2 === 0 && x * x + y * y < 15) arrows.push([x, y, mean.x - x, mean.y - y]);
      }
    }
    chart.getContext("2d").putImageData(pixels, 0, 0);
    const cell = size / LATTICE;
    context.drawImage(chart, -cell / 2, -cell / 2, size + cell, size + cell);
    for (const [x, y, toX, toY] of arrows) {
      const speed = Math.hypot(toX, toY) / time();
      const length = Math.min(0.13 * speed, 0.36);
      if (speed > 0.05) arrow(x, y, (toX / speed / time()) * length, (toY / speed / time()) * length);
    }
  }

  function arrow(x, y, alongX, alongY) {
    const [endX, endY] = [x + alongX, y + alongY];
    line([x, y, endX, endY], ink, 1.1, 0.6);
    const head = Math.min(0.1, 0.5 * Math.hypot(alongX, alongY)) / Math.hypot(alongX, alongY);
    line(
      [
        endX - head * (alongX - 0.6 * alongY), endY - head * (alongY + 0.6 * alongX), endX, endY,
        endX - head * (alongX + 0.6 * alongY), endY - head * (alongY - 0.6 * alongX),
      ],
      ink, 1.1, 0.6,
    );
  }

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  function drawSampling() {
    const times = math.pathTimes(STEPS);
    const after = Math.max(1, times.findIndex((t) => t <= state.t));
    const share = (times[after - 1] - state.t) / (times[after - 1] - times[after]);
    const heads = [];
    for (const path of now.paths) {
      const color = colorOf(nearest(path[2 * STEPS], path[2 * STEPS + 1]));
      line(path, color, 1.2, 0.5);
      context.lineWidth = 1;
      dot(path[0], path[1], 2.2, paper, color);
      const between = (i) => (1 - share) * path[2 * after - 2 + i] + share * path[2 * after + i];
      heads.push([between(0), between(1), color]);
    }
    for (const [x, y, color] of heads) dot(x, y, 4.4, color, ink);
  }

  function drawProbe() {
    const data = points();
    const weights = new Float64Array(data.length / 2);
    const mean = ask(probe[0], probe[1], weights);
    const most = Math.max(...weights);
    weights.forEach((weight, i) => {
      const share = weight / most;
      if (share < 0.01) return;
      line([...probe, data[2 * i], data[2 * i + 1]], colorOf(i), 1.6, 0.75 * share);
      context.lineWidth = 1.5;
      dot(data[2 * i], data[2 * i + 1], 4 + 4 * Math.sqrt(share), colorOf(i), ink);
    });
    line([...probe, mean.x, mean.y], ink, 2.6, 1);
    context.lineWidth = 2;
    dot(mean.x, mean.y, 5, paper, ink);
    dot(...probe, 9, paper, ink);
    dot(...probe, 3, ink);
    const text = `here ${short(mean.effective)} of ${weights.length} points are mixed`;
    context.font = "600 13px system-ui, sans-serif";
    const width = context.measureText(text).width + 16;
    const left = (size - width) / 2;
    const top = down(probe[1]) < size - 60 ? size - 34 : 8; // not where the point is
    context.fillStyle = ink;
    context.globalAlpha = 0.9;
    context.fillRect(left, top, width, 26);
    context.globalAlpha = 1;
    context.fillStyle = paper;
    context.fillText(text, left + 8, top + 17.5);
  }

  // Numbers

  const short = (value) => (value < 9.95 ? value.toFixed(1) : value.toFixed(0));

  /** Everything but the canvas. */
  function write() {
    const t = state.t;
    const mixed = (one) => short(math.meanEffective(one.density, points(), one.noise, time()));
    const rows = [
      ["mean distance of pairs", (one) => one.distance.toFixed(2)],
      [`points mixed at t = ${t.toFixed(2)}`, mixed],
      ["paths, over straight", (one) => `+${(100 * one.longer).toFixed(1)} %`],
      ["2 Euler steps miss by", (one) => one.miss.toFixed(2)],
    ];
    find("tbody").innerHTML = rows
      .map(([name, of]) => `<tr><th scope="row">${name}</th><td>${of(now)}</td><td>${of(plain)}</td></tr>`)
      .join("");
    find(".plane-t").textContent = `t = ${t.toFixed(2)}`;
    find(".plane-meaning").textContent = MEANING[state.coupling];
    find(".plane-k output").textContent = state.k;
    find(".plane-k").classList.toggle("plane-off", !["knn", "shuffled"].includes(state.coupling));
    find("[name=plane-k]").disabled = !["knn", "shuffled"].includes(state.coupling);
    find(".plane-start").hidden = state.view !== "sampling";
    find(".plane-see").innerHTML = SEE[state.view][state.coupling].replaceAll("x_t", "x<sub>t</sub>");
    const batches = now.density.batches;
    find(".plane-note").textContent =
      state.coupling === "assignment" && (state.view !== "pairs" || batches < BATCHES)
        ? `Best network: counted over ${batches} batches${batches < BATCHES ? ` of ${BATCHES} …` : "."}`
        : "";
    const button = find(".plane-play");
    button.textContent = playing ? "❚❚" : "▶";
    button.setAttribute("aria-label", playing ? "Stop" : state.view === "pairs" ? "Play: add noise" : "Play: remove noise");
    writeCurve();
  }

  function writeCurve() {
    const left = 34;
    const x = (t) => left + t * (412 - left);
    const y = (value) => 108 - (100 * Math.log(Math.max(value, 1))) / Math.log(160);
    const trace = (curve) => curve.map((value, i) => `${i ? "L" : "M"}${x(LEVELS[i]).toFixed(1)} ${y(value).toFixed(1)}`);
    const level = (value) =>
      `<path class="grid" d="M${left} ${y(value)}H412"/><text x="${left - 6}" y="${y(value) + 4}" text-anchor="end">${value}</text>`;
    const tick = (t, anchor) => `<text x="${x(t)}" y="126" text-anchor="${anchor}">${t}</text>`;
    const here = math.meanEffective(now.density, points(), now.noise, time());
    find("svg").innerHTML =
      [1, 10, 128].map(level).join("") +
      tick(0, "middle") + tick(0.5, "middle") + tick(1, "end") +
      `<path class="now" d="M${x(state.t)} 8V108"/>` +
      `<path class="plain" d="${trace(plain.curve).join("")}"/>` +
      `<path class="this" d="${trace(now.curve).join("")}"/>` +
      `<circle cx="${x(state.t)}" cy="${y(here)}" r="4.5"/>`;
  }

  function refresh() {
    write();
    draw();
  }

  // Input

  function step() {
    if (!playing) return;
    const forward = state.view === "pairs";
    const share = Math.min((performance.now() - playing) / 4500, 1);
    state.t = forward ? share : 1 - share;
    if (share === 1) playing = 0;
    find("[name=plane-t]").value = state.t;
    write();
  }

  function setProbe(x, y) {
    const inside = (value) => Math.min(Math.max(value, -EDGE), EDGE);
    probe = [inside(x), inside(y)];
    draw();
  }

  host.addEventListener("input", (event) => {
    const { name, value } = event.target;
    const key = name.replace("plane-", "");
    if (key === "t") {
      state.t = Number(value);
      playing = 0;
      event.target.setAttribute("aria-valuetext", `t = ${state.t.toFixed(2)}`);
      return refresh();
    }
    state[key] = key === "k" ? 2 ** Number(value) : value;
    if (key === "k") event.target.setAttribute("aria-valuetext", `k = ${state.k}`);
    if (key === "view") {
      playing = 0;
      return refresh();
    }
    return compute();
  });
  find(".plane-draw").addEventListener("click", () => {
    state.seed += 1;
    compute();
  });
  find(".plane-play").addEventListener("click", () => {
    playing = playing ? 0 : performance.now();
    refresh();
  });

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    return [(2 * x - 1) * EDGE, (1 - 2 * y) * EDGE];
  };
  let dragging = false;
  canvas.addEventListener("pointerdown", (event) => {
    dragging = true;
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    setProbe(...place(event));
  });
  canvas.addEventListener("pointermove", (event) => dragging && setProbe(...place(event)));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (dragging = false));
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === "Escape") {
      probe = null;
      draw();
    } else if (by) {
      event.preventDefault();
      const [x, y] = probe || [0, 0];
      setProbe(x + 0.15 * by[0], y + 0.15 * by[1]);
      const { effective } = ask(...probe, new Float64Array(points().length / 2));
      find("[role=status]").textContent = `${probe.map((value) => value.toFixed(1))}: ${short(effective)} points mixed`;
    }
  });

  // Size and colors of the page

  function restyle() {
    const dark = document.body.getAttribute("data-md-color-scheme") === "slate";
    colors = dark ? DARK : LIGHT;
    ink = dark ? "#f2f5f7" : "#1b1f24";
    paper = dark ? "#1a1d24" : "#ffffff";
    draw();
  }
  function resize() {
    size = canvas.clientWidth;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    canvas.width = canvas.height = Math.round(size * ratio);
    if (now) render();
  }
  new ResizeObserver(resize).observe(canvas);
  new MutationObserver(restyle).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
  compute();
  restyle();
  resize();
})();
