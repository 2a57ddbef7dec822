// Turns and plays the structures of a report. `data` holds the frames; the viewer is 3Dmol.js, unpacked here.
"use strict";
const report = { frame: 0, playing: false, colour: "element", timer: 0, viewer: null, error: null };
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

async function unpack() {
  const packed = Uint8Array.from(atob(byId("viewer-code").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.appendChild(script);
}

// grey at 0, blue at 0.5, orange at 1, red from 2 on
const STOPS = [[0, 154, 163, 178], [0.5, 59, 111, 212], [1, 240, 166, 90], [2, 194, 59, 78]];
function heat(value) {
  if (value === null || value === undefined) return "#999999";
  let k = 1;
  while (k < STOPS.length - 1 && value > STOPS[k][0]) k++;
  const [a, b] = [STOPS[k - 1], STOPS[k]];
  const share = Math.min(1, Math.max(0, (value - a[0]) / (b[0] - a[0])));
  const mixed = [1, 2, 3].map((i) => Math.round(a[i] + share * (b[i] - a[i])));
  return "#" + mixed.map((c) => c.toString(16).padStart(2, "0")).join("");
}

function symbolsOf(k) {
  while (data.frames[k].s === undefined) k--;
  return data.frames[k].s;
}

function xyz(k) {
  const s = symbolsOf(k), x = data.frames[k].x;
  const rows = s.map((symbol, i) => `${symbol} ${x[3 * i]} ${x[3 * i + 1]} ${x[3 * i + 2]}`);
  return `${s.length}\n\n${rows.join("\n")}\n`;
}

// Particles: those predicted, with two corners that hold the view still, and the true ones where they are known.
function points(x) {
  const rows = Array.from({ length: x.length / 3 }, (_, i) => `He ${x[3 * i]} ${x[3 * i + 1]} ${x[3 * i + 2]}`);
  return `${rows.length}\n\n${rows.join("\n")}\n`;
}

function blend(one, other, share) {
  const parts = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const [a, b] = [parts(one), parts(other)];
  return "#" + a.map((value, i) => Math.round(value + share * (b[i] - value)).toString(16).padStart(2, "0")).join("");
}

function drawParticles(viewer, frame) {
  const colorfunc = (atom) => data.colours[atom.index];
  const all = data.colours.map((_, i) => i);
  viewer.addModel(points([...frame.x, ...data.reach]), "xyz").setStyle({}, {});
  viewer.setStyle({ model: 0, index: all }, { sphere: { radius: data.radius, colorfunc } });
  const pale = (atom) => blend(colorfunc(atom), "#c9ced8", 0.7);
  if (frame.g) viewer.addModel(points(frame.g), "xyz").setStyle({}, { sphere: { radius: 0.9 * data.radius, colorfunc: pale } });
}

function box(cell) {
  const corner = (i, j, k) => {
    const at = [0, 1, 2].map((d) => i * cell[0][d] + j * cell[1][d] + k * cell[2][d]);
    return { x: at[0], y: at[1], z: at[2] };
  };
  const colour = getComputedStyle(document.body).getPropertyValue("--dim").trim();
  for (const [i, j] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
    for (const ends of [[[0, i, j], [1, i, j]], [[i, 0, j], [i, 1, j]], [[i, j, 0], [i, j, 1]]]) {
      report.viewer.addLine({ start: corner(...ends[0]), end: corner(...ends[1]), color: colour });
    }
  }
}

function style(k) {
  const n = symbolsOf(k).length;
  const signal = report.colour === "extrapolation" ? data.frames[k].e : undefined;
  const look = signal ? { colorfunc: (atom) => heat(signal[atom.index]) } : { colorscheme: "Jmol" };
  if (n > 3000) return { line: look };
  return { stick: { radius: 0.12, ...look }, sphere: { scale: n > 600 ? 0.18 : 0.26, ...look } };
}

function draw() {
  const viewer = report.viewer;
  if (viewer === null) return;
  viewer.removeAllModels();
  viewer.removeAllShapes();
  if (data.colours) drawParticles(viewer, data.frames[report.frame]);
  else viewer.addModel(xyz(report.frame), "xyz").setStyle({}, style(report.frame));
  if (data.frames[report.frame].c) box(data.frames[report.frame].c);
  viewer.render();
}

function show(k) {
  report.frame = Math.max(0, Math.min(data.frames.length - 1, k));
  const frame = data.frames[report.frame];
  byId("slider").value = report.frame;
  byId("label").textContent = frame.l || "";
  if (frame.t !== undefined) {
    for (const chart of document.querySelectorAll("svg[data-x]")) {
      const [low, high, left, right] = chart.dataset.x.split(" ").map(Number);
      const x = left + ((frame.t - low) / (high - low)) * (right - left);
      const mark = chart.querySelector(".now");
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
      mark.style.visibility = x >= left && x <= right ? "visible" : "hidden";
    }
  }
  draw();
  if (!data.moving) fit();
}

// The colour of the card behind it: where canvases have no alpha, a clear one is white, in the dark too.
function ground() {
  if (report.viewer === null) return;
  report.viewer.setBackgroundColor(getComputedStyle(document.body).getPropertyValue("--card").trim(), 1);
  report.viewer.render();
}

function fit() {
  if (report.viewer === null) return;
  report.viewer.zoomTo();
  report.viewer.zoom(byId("view").clientWidth < byId("view").clientHeight ? 0.9 : 1.1);  // nothing is cut off on a telephone
  report.viewer.render();
}

function play(on) {
  report.playing = on;
  byId("play").textContent = on ? "❚❚ pause" : "▶ play";
  clearInterval(report.timer);
  if (on) report.timer = setInterval(() => show((report.frame + 1) % data.frames.length), data.moving ? 50 : 1200);
}

function jump(event) {
  const chart = event.currentTarget, area = chart.getBoundingClientRect();
  const [low, high, left, right] = chart.dataset.x.split(" ").map(Number);
  const place = ((event.clientX - area.left) / area.width) * chart.viewBox.baseVal.width;
  const wanted = low + ((place - left) / (right - left)) * (high - low);
  let best = 0;
  data.frames.forEach((frame, k) => {
    if (Math.abs(frame.t - wanted) < Math.abs(data.frames[best].t - wanted)) best = k;
  });
  play(false);
  show(best);
}

async function start() {
  byId("slider").max = data.frames.length - 1;
  if (data.frames.length < 2) byId("moving").hidden = true;
  byId("slider").oninput = (event) => { play(false); show(Number(event.target.value)); };
  byId("play").onclick = () => play(!report.playing);
  byId("again").onclick = fit;
  byId("colour").onchange = (event) => {
    report.colour = event.target.value;
    byId("ramp").hidden = report.colour === "element";
    draw();
  };
  if (!data.frames.some((frame) => frame.e)) byId("colours").hidden = true;
  if (data.moving) for (const chart of document.querySelectorAll("svg[data-x]")) chart.onclick = jump;
  try {
    await unpack();
    report.viewer = $3Dmol.createViewer(byId("view"), { antialias: true });
    if (!report.viewer || !report.viewer.getCanvas().getContext) throw new Error("no canvas");
  } catch (problem) {
    report.viewer = null;
    byId("view").innerHTML = "<p>This browser draws nothing in three dimensions (WebGL is missing); the charts are all there.</p>";
    report.error = String(problem);
  }
  ground();
  matchMedia("(prefers-color-scheme: dark)").onchange = ground;
  show(0);
  fit();
  document.body.dataset.ready = report.error || "yes";
}

window.report = Object.assign(report, { show, play, draw, data });
if (data.frames.length) start(); else document.body.dataset.ready = "yes";
