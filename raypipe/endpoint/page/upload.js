// The panel to try a clip: its labels, if there is a classifier, and the nearest videos.

import { getJson, withQuery } from "./api.js";
import { answer, byId, h, onlyLatest, plural, quoted, statusLine } from "./dom.js";
import { frameStrip } from "./frames.js";
import { duration, labelBars, row, similarity } from "./videos.js";

const NEIGHBORS = 12;

export class Upload {
  #dialog = byId("clip");
  #file = byId("clip-file");
  #labels = byId("clip-labels");
  #list = byId("clip-neighbors");
  #neighborsTitle = byId("clip-neighbors-title");
  #line = statusLine(byId("clip-status"));
  #next = onlyLatest();
  #views;
  #index = { can_embed: false, can_classify: false };

  constructor(views) {
    this.#views = views;
    byId("clip-open").addEventListener("click", () => this.#open());
    byId("clip-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#next()); // cancel the request in flight
    this.#file.addEventListener("change", () => {
      this.#send(this.#file.files[0]);
      this.#file.value = ""; // so that the same file can be chosen again
    });
    for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, (event) => this.#drag(event));
  }

  describe(index) {
    this.#index = index;
    byId("clip-open").hidden = !this.#possible;
    byId("clip-what").textContent = index.can_classify
      ? "See its labels and the nearest videos. The clip is not stored."
      : "See the nearest videos. The clip is not stored.";
  }

  get #possible() {
    return this.#index.can_classify || this.#index.can_embed;
  }

  #open() {
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  // Accept files anywhere on the page: a browser would navigate to a file that is dropped next to the field.
  #drag(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    const over = event.type === "dragover" && this.#possible;
    document.documentElement.toggleAttribute("data-drop", over);
    const [file] = event.dataTransfer.files;
    if (event.type !== "drop" || !this.#possible || !file) return;
    this.#open();
    this.#send(file);
  }

  #send(file) {
    if (!file) return;
    this.#labels.replaceChildren();
    this.#list.replaceChildren();
    this.#neighborsTitle.hidden = true;
    this.#line.say(`Reading ${file.name}, ${megabytes(file.size)}…`);
    const path = this.#index.can_classify
      ? withQuery("v1/classify", { top_k: 5, neighbors: NEIGHBORS, frame_scores: true })
      : withQuery("v1/embed", { top_k: NEIGHBORS });
    const type = file.type.startsWith("video/") ? file.type : "application/octet-stream";
    answer({
      signal: this.#next(),
      line: this.#line,
      busy: this.#list,
      ask: (options) => getJson(path, { ...options, method: "POST", type, body: file }),
      show: (found) => this.#show(file.name, found),
      retry: () => this.#send(file),
    });
  }

  #show(name, { top, frame_scores: scores, num_frames: numFrames, duration_seconds: seconds, neighbors }) {
    const length = typeof seconds === "number" ? `${duration(seconds)}, ` : "";
    this.#line.say(`${name}: ${length}${plural(numFrames, "frame")} read.`);
    if (top?.length) {
      const parts = [h("h3", {}, "It looks like ", quoted(top[0].label)), labelBars(top), frameStrip(top[0].label, scores)];
      this.#labels.append(...parts.filter(Boolean));
    }
    if (!neighbors) return;
    this.#neighborsTitle.hidden = neighbors.results.length === 0;
    this.#list.replaceChildren(...neighbors.results.map((result) => row(result, { ...this.#views, because: similarity })));
    this.#views.seen(neighbors.version);
  }
}

const megabytes = (bytes) => (bytes < 1e5 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
