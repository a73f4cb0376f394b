"""The report's page: HTML, style and script with a place for the data. What the data is and where it comes from is
`fz.results.report`'s question.

Nothing is fetched: the page forbids itself any source but its own text (Content-Security-Policy).
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5b6068; --page: #fff; --card: #f4f5f7; --line: #d5d8dd; --mark: #0b62c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9eb; --soft: #a2a7af; --page: #131417; --card: #1d1f23; --line: #373b42; --mark: #6cb0ff }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page) }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0 } .soft { color: var(--soft) }
canvas { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--card) }
.row { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: center; margin: .5rem 0 }
.row label { display: flex; gap: .5rem; align-items: center; flex: 1 1 14rem }
input[type=range] { flex: 1; min-width: 6rem; height: 2rem; accent-color: var(--mark) }
output { min-width: 4.5rem; font-variant-numeric: tabular-nums; color: var(--soft) }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .35rem .8rem;
  min-height: 2.5rem; cursor: pointer }
button[aria-pressed=true] { border-color: var(--mark); box-shadow: inset 0 0 0 1px var(--mark) }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
#compare { max-width: 36rem; margin: .5rem auto; touch-action: pan-y; cursor: ew-resize }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .8rem } figure { margin: 0 }
figcaption { font-size: .9rem; color: var(--soft); overflow-wrap: anywhere }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
.two canvas { max-width: 24rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem }
td, th { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 10rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .7rem; border-radius: 6px; font-size: .85rem }
summary { cursor: pointer; padding: .3rem 0 } [hidden] { display: none !important }
</style>
</head>
<body>
<header><h1>@TITLE@</h1><p class="soft">of: @SOURCE@</p></header>
<main>
<noscript><p>The clips and sliders need JavaScript; metrics, settings and the command are below.</p></noscript>
<div class="row" id="edits" role="group" aria-label="which edit"></div>
<canvas id="compare" role="img" aria-label="the source left of the divider, the edit right of it"></canvas>
<div class="row">
<button id="play" type="button">Play</button>
<label>frame <input id="frame" type="range" min="0" value="0"><output id="frame-is"></output></label>
<label>compare <input id="split" type="range" min="0" max="100" value="50"><output id="split-is"></output></label>
</div>
<p class="soft">Keys: space plays, ← and → go frame by frame.</p>
<h2>In step</h2>
<div class="clips" id="clips"></div>
<div class="two">
<section id="attention" aria-labelledby="attention-h"><h2 id="attention-h">Where each word of the source looks</h2>
<div class="row" id="words" role="group" aria-label="which word"></div>
<canvas id="word" role="img"></canvas><p class="soft">Attention of the word, averaged over steps; it follows the frame slider.</p></section>
<section id="masks" aria-labelledby="masks-h"><h2 id="masks-h">What may be edited, step by step</h2>
<div class="row"><label>step <input id="step" type="range" min="0" value="0"><output id="step-is"></output></label></div>
<canvas id="mask" role="img"></canvas><p class="soft">Bright: the blend mask, edited. Dark: the source's attention is kept.</p></section>
</div>
<h2>Metrics</h2>
<div class="scroll" tabindex="0" role="region" aria-label="metrics">@METRICS@</div>
<h2>Command</h2>
<pre id="command">@COMMAND@</pre>
<button id="copy" type="button">Copy</button>
<h2>Run</h2>
@NOTES@
<details><summary>Time and memory</summary><div class="scroll">@STAGES@</div></details>
<details><summary>Settings</summary><pre>@SETTINGS@</pre></details>
<details><summary>Versions</summary><pre>@VERSIONS@</pre></details>
</main>
<script type="application/json" id="data">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), $ = id => document.getElementById(id);
const count = data.clips[0].frames.length;
let edit = 1, frame = 0, word = 0, timer = null;
let waiting = false;
const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw() }) } };
const load = uri => { const image = new Image(); image.onload = later; image.src = uri; return image };
const clips = data.clips.map(clip => clip.frames.map(load));
const lazy = strips => { let images = null; return () => images || (images = strips.map(load)) };
const words = data.words.map(w => ({ ...w, images: lazy(w.strips) })), masks = data.masks.map(m => ({ ...m, images: lazy(m.strips) }));
const ready = image => image && image.complete && image.naturalWidth > 0;

function paint(canvas, image) {
  if (!ready(image)) return null;
  if (canvas.width !== image.naturalWidth || canvas.height !== image.naturalHeight) {
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  }
  const on = canvas.getContext("2d"); on.drawImage(image, 0, 0); return on;
}
function tile(canvas, strip) {  // one frame's picture out of a strip
  const image = strip.images()[Math.floor(frame / data.per_strip)], i = frame % data.per_strip;
  if (!ready(image)) return;
  if (canvas.width !== strip.width || canvas.height !== image.naturalHeight) {
    canvas.width = strip.width; canvas.height = image.naturalHeight;
  }
  canvas.getContext("2d").drawImage(image, i * (strip.width + data.gap), 0, strip.width, canvas.height, 0, 0, strip.width, canvas.height);
}
function draw() {
  const canvas = $("compare"), on = paint(canvas, clips[edit][frame]), source = clips[0][frame];
  if (on && ready(source)) {
    const x = Math.round(canvas.width * $("split").value / 100);
    if (x > 0) on.drawImage(source, 0, 0, x, source.naturalHeight, 0, 0, x, canvas.height);
    on.fillStyle = "#fff"; on.fillRect(x - 1, 0, 2, canvas.height);
  }
  document.querySelectorAll("#clips canvas").forEach((c, i) => paint(c, clips[i][frame]));
  $("frame").value = frame; $("frame-is").textContent = `${frame + 1} of ${count}`;
  $("split-is").textContent = `${$("split").value} %`;
  if (words.length) {
    tile($("word"), words[word]); $("word").setAttribute("aria-label", `attention of '${words[word].word}', frame ${frame + 1}`);
  }
  const steps = masks.filter(m => m.edit === edit - 1);
  $("masks").hidden = !steps.length;
  if (steps.length) {
    $("step").max = steps.length - 1;
    const now = steps[$("step").value];
    tile($("mask"), now); $("step-is").textContent = `step ${now.step}`;
    $("mask").setAttribute("aria-label", `blend mask of step ${now.step}, frame ${frame + 1}`);
  }
}
function go(to) { frame = (to + count) % count; draw() }
function play(on) {
  clearInterval(timer); timer = on ? setInterval(() => go(frame + 1), 1000 / data.fps) : null;
  $("play").textContent = on ? "Pause" : "Play";
}
function choices(box, labels, chosen) {
  labels.forEach((label, i) => {
    const button = document.createElement("button"); button.type = "button"; button.textContent = label;
    button.setAttribute("aria-pressed", i === 0);
    button.onclick = () => { [...box.children].forEach(b => b.setAttribute("aria-pressed", b === button)); chosen(i); draw() };
    box.append(button);
  });
}
choices($("edits"), data.clips.slice(1).map(c => c.label), i => { edit = i + 1; $("step").value = 0 });
$("edits").hidden = data.clips.length < 3;
choices($("words"), words.map(w => w.word), i => { word = i });
if (words.length) { word = data.first_word; [...$("words").children].forEach((b, i) => b.setAttribute("aria-pressed", i === word)) }
$("attention").hidden = !words.length;
data.clips.forEach((clip, i) => {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas"), text = document.createElement("figcaption");
  canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", i ? `edit: ${clip.label}` : "source");
  text.textContent = i ? clip.label : `source: ${clip.label}`; figure.append(canvas, text); $("clips").append(figure);
});
$("frame").max = count - 1;
$("frame").oninput = () => { play(false); go(+$("frame").value) };
$("split").oninput = draw; $("step").oninput = draw;
$("play").onclick = () => play(!timer);
const drag = e => {
  const box = $("compare").getBoundingClientRect();
  $("split").value = Math.round(100 * (e.clientX - box.left) / box.width); draw();
};
$("compare").onpointerdown = e => { $("compare").setPointerCapture(e.pointerId); drag(e) };
$("compare").onpointermove = e => { if (e.buttons) drag(e) };
document.onkeydown = e => {
  const on = e.target.tagName;  // sliders and what scrolls keep their arrows, buttons their space
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === " " && !/^(BUTTON|SUMMARY)$/.test(on)) { e.preventDefault(); play(!timer) }
  if (on === "INPUT" || e.target.closest?.(".scroll")) return;
  if (e.key === "ArrowRight") { play(false); go(frame + 1) }
  if (e.key === "ArrowLeft") { play(false); go(frame - 1) }
};
$("copy").onclick = async () => {
  const range = document.createRange(); range.selectNodeContents($("command"));
  getSelection().removeAllRanges(); getSelection().addRange(range);
  try { await navigator.clipboard.writeText($("command").textContent); $("copy").textContent = "Copied" }
  catch { $("copy").textContent = "Selected: press Ctrl+C" }
};
draw();
if (count > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) play(true);
</script>
</body>
</html>
"""
