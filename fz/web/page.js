// What moves in the browser: uploads, the players, sliders of words, the brush, progress. What it has to tell goes into
// Gradio's hidden text boxes (say); nothing is loaded from elsewhere.
"use strict";
(() => {
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};
const hex = () => [...crypto.getRandomValues(new Uint8Array(8))].map(b => b.toString(16).padStart(2, "0")).join("");
const page = hex();
let told = 0;

function say(id, value) {
  const box = document.querySelector(`#${id} textarea, #${id} input`);
  if (!box) return;
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), "value").set;
  set.call(box, JSON.stringify({ value, n: `${page}-${++told}` }));
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

document.addEventListener("click", async event => {
  const button = event.target.closest?.("[data-say]");
  if (button) say(button.dataset.say, button.dataset.value);
  const copy = event.target.closest?.("[data-copy]");
  if (copy) {
    const text = document.getElementById(copy.dataset.copy), range = document.createRange();
    range.selectNodeContents(text); getSelection().removeAllRanges(); getSelection().addRange(range);
    try { await navigator.clipboard.writeText(text.textContent); copy.textContent = "Copied" }
    catch { copy.textContent = "Selected: press Ctrl+C" }
  }
});

// ---- upload ----------------------------------------------------------------------------------------------------

class Drop extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    const input = make("input", { type: "file", multiple: true, id: "fz-file",
      accept: "video/*,image/*,.mkv,.apng,.avif", onchange: () => this.send([...input.files]) });
    this.line = make("span", { class: "fz-note", role: "status" }, "mp4, webm, gif, or pictures in order");
    this.bar = make("progress", { max: 1, value: 0, hidden: true, "aria-label": "upload" });
    this.append(make("label", { class: "fz-drop", for: "fz-file" }, make("b", {}, "Bring a clip"),
      make("span", {}, "drop it here, or choose a file"), input, this.line, this.bar));
    this.ondragover = e => { e.preventDefault(); this.classList.add("over") };
    this.ondragleave = () => this.classList.remove("over");
    this.ondrop = e => { e.preventDefault(); this.classList.remove("over"); this.send([...e.dataTransfer.files]) };
    this.input = input;
  }
  async send(files) {
    if (!files.length || this.busy) return;
    // files that the server gives one name come to be numbered in this order
    files.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    const limit = +this.dataset.limit, all = files.reduce((sum, file) => sum + file.size, 0), batch = hex();
    const fail = line => { this.line.textContent = line; this.line.className = "fz-error" };
    this.line.className = "fz-note";
    if (all > limit) { this.input.value = ""; return fail(`This is larger than ${Math.round(limit / 1e6)} MB. Make it shorter or smaller.`) }
    this.busy = true; this.bar.hidden = false;
    let sent = 0;
    try {
      for (const file of files) {
        await new Promise((done, failed) => {
          const request = new XMLHttpRequest();
          request.open("PUT", `fz/upload/${batch}/${encodeURIComponent(file.name)}`);
          request.upload.onprogress = e => { this.bar.value = (sent + e.loaded) / Math.max(all, 1) };
          request.onload = () => {
            if (request.status < 300) return done();
            let line = request.responseText;
            try { line = JSON.parse(line).line } catch { /* plain text */ }
            failed(line);
          };
          request.onerror = () => failed("The upload was cut short. Try again.");
          request.send(file);
        });
        sent += file.size;
      }
      this.line.textContent = files.length > 1 ? `${files.length} files` : files[0].name;
      say("fz-uploaded", batch);
    } catch (line) { fail(String(line)) }
    this.busy = false; this.bar.hidden = true; this.input.value = "";
  }
}

// ---- player ----------------------------------------------------------------------------------------------------

class Player extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    const clip = JSON.parse(this.dataset.clip), count = clip.edit.length;
    const load = uri => { const image = new Image(); image.onload = () => this.draw(); image.src = uri; return image };
    this.source = clip.source.map(load); this.edit = clip.edit.map(load);
    this.frame = 0; this.fps = clip.fps;
    this.canvas = make("canvas", { role: "img", tabindex: 0, "aria-label": `your clip left of the line, ${clip.label} right of it` });
    this.split = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "compare", oninput: () => this.draw() });
    this.slider = make("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": "frame",
      oninput: () => { this.play(false); this.go(+this.slider.value) } });
    this.is = make("output", {});
    this.button = make("button", { type: "button", class: "fz-button", onclick: () => this.play(!this.timer) }, "Play");
    this.pair = [make("canvas", { role: "img", "aria-label": "your clip" }), make("canvas", { role: "img", "aria-label": clip.label })];
    this.append(
      make("div", { class: "fz-compare" }, this.canvas),
      make("div", { class: "fz-row" }, this.button, make("label", {}, "Frame", this.slider, this.is), make("label", {}, "Compare", this.split)),
      make("div", { class: "fz-pair" }, make("figure", {}, this.pair[0], make("figcaption", {}, "your clip")),
        make("figure", {}, this.pair[1], make("figcaption", {}, clip.label))));
    const drag = e => {
      const box = this.canvas.getBoundingClientRect();
      this.split.value = Math.round(100 * (e.clientX - box.left) / box.width); this.draw();
    };
    this.canvas.onpointerdown = e => { this.canvas.setPointerCapture(e.pointerId); drag(e) };
    this.canvas.onpointermove = e => { if (e.buttons) drag(e) };
    this.canvas.onkeydown = e => {
      if (e.key === " ") { e.preventDefault(); this.play(!this.timer) }
      if (e.key === "ArrowRight") { this.play(false); this.go(this.frame + 1) }
      if (e.key === "ArrowLeft") { this.play(false); this.go(this.frame - 1) }
    };
    if (count > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.play(true);
    this.draw();
  }
  disconnectedCallback() { clearInterval(this.timer) }
  go(to) { this.frame = (to + this.edit.length) % this.edit.length; this.draw() }
  play(on) {
    clearInterval(this.timer); this.timer = on ? setInterval(() => this.go(this.frame + 1), 1000 / this.fps) : null;
    this.button.textContent = on ? "Pause" : "Play";
  }
  paint(canvas, image, part = 1) {
    if (!image.complete || !image.naturalWidth) return null;
    if (canvas.width !== image.naturalWidth || canvas.height !== image.naturalHeight) {
      canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    }
    const on = canvas.getContext("2d"), width = Math.round(canvas.width * part);
    if (width) on.drawImage(image, 0, 0, width, canvas.height, 0, 0, width, canvas.height);
    return on;
  }
  draw() {
    if (!this.slider) return;
    const source = this.source[this.frame], edit = this.edit[this.frame], share = this.split.value / 100;
    const on = this.paint(this.canvas, edit);
    if (on && source.complete && source.naturalWidth === edit.naturalWidth) {
      this.paint(this.canvas, source, share);
      on.fillStyle = "#fff"; on.fillRect(Math.round(this.canvas.width * share) - 1, 0, 2, this.canvas.height);
    }
    this.paint(this.pair[0], source); this.paint(this.pair[1], edit);
    this.slider.value = this.frame; this.is.textContent = `${this.frame + 1} of ${this.edit.length}`;
  }
}

// ---- strength of words -----------------------------------------------------------------------------------------

class Weights extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    const values = JSON.parse(this.dataset.values);
    for (const word of JSON.parse(this.dataset.words)) {
      const is = make("output", {}, `×${values[word] ?? 1}`);
      const slider = make("input", { type: "range", min: -1, max: 4, step: 0.25, value: Weights.place(values[word] ?? 1),
        "aria-label": `strength of ${word}` });
      slider.oninput = () => {
        values[word] = +(slider.value < 0 ? 1 + +slider.value : 2 ** slider.value).toFixed(2);
        is.textContent = `×${values[word]}`;
        clearTimeout(this.soon); this.soon = setTimeout(() => say("fz-weights", values), 120);
      };
      this.append(make("label", {}, make("span", {}, word), slider, is));
    }
  }
  // 0 to 1 left of the middle, 1 to 16 right of it
  static place(factor) { return factor < 1 ? Math.max(factor, 0) - 1 : Math.log2(factor) }
}

// ---- brush -----------------------------------------------------------------------------------------------------

class Brush extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    this.canvas = make("canvas", { tabindex: 0, role: "application",
      "aria-label": "draw the area; arrow keys move the brush, space paints, backspace wipes" });
    this.mask = document.createElement("canvas");
    this.picture = new Image();
    this.picture.onload = () => {
      for (const c of [this.canvas, this.mask]) { c.width = this.picture.naturalWidth; c.height = this.picture.naturalHeight }
      this.at = [this.canvas.width / 2, this.canvas.height / 2];
      this.draw();
    };
    this.size = make("input", { type: "range", min: 2, max: 40, value: 14, "aria-label": "size of the brush", oninput: () => this.draw() });
    this.wipes = make("input", { type: "checkbox" });
    const clear = make("button", { type: "button", class: "fz-button", onclick: () => {
      this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height); this.drawn = false;
      this.draw(); say("fz-drawing", "");
    } }, "Clear");
    this.append(make("h3", {}, "Draw the area"), make("p", { class: "fz-note" }, "It is used in place of the words' area: shapes may change in it."), this.canvas,
      make("div", { class: "fz-row" }, make("label", {}, "Brush", this.size), make("label", { class: "fz-check" }, this.wipes, "wipe"), clear));
    const move = e => {
      const box = this.canvas.getBoundingClientRect();
      return [(e.clientX - box.left) * this.canvas.width / box.width, (e.clientY - box.top) * this.canvas.height / box.height];
    };
    this.canvas.onpointerdown = e => { this.canvas.setPointerCapture(e.pointerId); this.at = move(e); this.dab(this.at, this.wipes.checked) };
    this.canvas.onpointermove = e => {
      const before = this.at; this.at = move(e);
      if (e.buttons) this.dab(before, this.wipes.checked); else this.draw();
    };
    this.canvas.onpointerup = () => this.tell();
    this.canvas.onkeydown = e => {
      const step = this.radius(), by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[e.key];
      if (by) { e.preventDefault(); this.at = [this.at[0] + by[0], this.at[1] + by[1]]; this.draw() }
      if (e.key === " " || e.key === "Backspace") { e.preventDefault(); this.dab(this.at, e.key !== " "); this.tell() }
    };
    this.picture.src = this.dataset.picture;
  }
  radius() { return this.size.value / 100 * Math.max(this.canvas.width, this.canvas.height) / 2 }
  dab(from, wipe) {
    const on = this.mask.getContext("2d");
    on.globalCompositeOperation = wipe ? "destination-out" : "source-over";
    on.lineCap = "round"; on.lineWidth = 2 * this.radius(); on.strokeStyle = "#fff";
    on.beginPath(); on.moveTo(...from); on.lineTo(this.at[0] + 0.01, this.at[1]); on.stroke();
    this.drawn = true; this.draw();
  }
  draw() {
    if (!this.at) return;
    const on = this.canvas.getContext("2d"), { width, height } = this.canvas;
    on.globalAlpha = 1; on.drawImage(this.picture, 0, 0);
    if (this.drawn) { on.globalAlpha = 0.6; on.drawImage(this.mask, 0, 0) }
    on.globalAlpha = 1; on.strokeStyle = "#d9552b"; on.lineWidth = Math.max(1, width / 200);
    on.beginPath(); on.arc(this.at[0], this.at[1], this.radius(), 0, 7); on.stroke();
  }
  tell() {
    const out = document.createElement("canvas"), { width, height } = this.mask;
    out.width = width; out.height = height;
    const on = out.getContext("2d");
    on.fillStyle = "#000"; on.fillRect(0, 0, width, height); on.drawImage(this.mask, 0, 0);
    say("fz-drawing", out.toDataURL("image/png"));
  }
}

// ---- progress --------------------------------------------------------------------------------------------------

const KIND = { preview: "Preview", run: "Edit", sheet: "Sheet" };
class Progress extends HTMLElement {
  connectedCallback() {
    if (this.list) return;
    this.list = make("div", { "aria-live": "polite" }); this.append(this.list);
    this.open = new Map(); this.rows = new Map();
    this.poll();
    document.addEventListener("click", e => { if (e.target.closest?.("#fz-run, #fz-preview, #fz-sheet")) this.soon(150) });
    addEventListener("pagehide", () => navigator.sendBeacon(`fz/closed?page=${page}`));
  }
  soon(ms) { clearTimeout(this.timer); this.timer = setTimeout(() => this.poll(), ms) }
  async poll() {
    let jobs = null;
    try {
      const reply = await fetch(`fz/state?page=${page}`, { cache: "no-store" });
      if (reply.ok) jobs = (await reply.json()).jobs;
    } catch { /* the server is away: ask again */ }
    if (jobs) this.show(jobs);
    this.soon(!jobs ? 2000 : jobs.some(j => !["done", "failed", "cancelled"].includes(j.state)) || document.querySelector(".fz-sent") ? 400 : 2500);
  }
  show(jobs) {
    const over = job => ["done", "failed", "cancelled"].includes(job.state);
    for (const job of jobs) {
      const sent = document.querySelector(`.fz-sent[data-job="${job.id}"]`);
      if (over(job)) {
        if (this.open.has(job.id) || sent) {
          sent?.remove();
          this.open.delete(job.id); this.rows.get(job.id)?.remove(); this.rows.delete(job.id);
          const line = job.state === "cancelled" ? "Cancelled." : job.line;
          say("fz-done", { ...job, line });
        }
        continue;
      }
      this.open.set(job.id, job);
      if (!this.rows.has(job.id)) {
        const row = make("div", { class: "fz-job" }, make("span", {}), make("progress", { max: 1, value: 0, "aria-label": "progress" }),
          make("button", { type: "button", class: "fz-button fz-cancel", onclick: () => { fetch(`fz/cancel/${job.id}`, { method: "POST" }); this.soon(150) } }, "Cancel"));
        this.rows.set(job.id, row); this.list.append(row);
      }
      const row = this.rows.get(job.id), left = job.left === null ? "" : job.left < 90 ? `, ${Math.ceil(job.left)} s left` : `, ${Math.round(job.left / 60)} min left`;
      row.children[0].textContent = `${KIND[job.kind]}: ` + (job.state === "waiting"
        ? (job.place ? `waiting, ${job.place} before it` : "waiting") : `${job.stage || "Getting ready"}${left}`);
      row.children[1].value = job.share;
    }
    const there = new Set(jobs.map(j => j.id));  // a server that started again may know none of them
    for (const [id, row] of this.rows) if (!there.has(id)) { row.remove(); this.rows.delete(id); this.open.delete(id) }
  }
}

for (const [name, kind] of Object.entries({ drop: Drop, player: Player, weights: Weights, brush: Brush, progress: Progress })) {
  if (!customElements.get(`fz-${name}`)) customElements.define(`fz-${name}`, kind);
}
})();
