// The strip of watched videos, and the recommendations based on them.

import { postJson } from "./api.js";
import { answer, byId, debounce, decimals, h, icon, onlyLatest, plural, quoted, setOptions, statusLine } from "./dom.js";
import { picture } from "./pictures.js";
import { repaintWatchButtons, row, titleOf } from "./videos.js";

const TOP_K = 20;
const SLIDERS = { diversity: null, freshness: "published_at", popularity: "popularity" }; // the column that each needs

export class Recommendations {
  #strip = byId("strip");
  #controls = byId("controls");
  #list = byId("recommended");
  #line = statusLine(byId("recommended-status"));
  #next = onlyLatest();
  #views;
  #watched;

  constructor(views) {
    this.#views = views;
    this.#watched = views.watched;
    this.#watched.addEventListener("change", () => {
      repaintWatchButtons(this.#watched);
      this.#showStrip();
      this.refresh();
    });
    this.#controls.addEventListener("submit", (event) => event.preventDefault());
    this.#controls.addEventListener("input", debounce(150, () => this.refresh()));
    this.#controls.addEventListener("input", () => this.#showValues());
    this.#controls.addEventListener("reset", () => setTimeout(() => this.#controls.dispatchEvent(new Event("input"))));
    byId("clear").addEventListener("click", () => {
      this.#watched.clear();
      byId("for-you-title").focus();
    });
    this.#showStrip();
    this.#showValues();
  }

  describe({ categories, columns }) {
    const fields = this.#controls.elements;
    const known = categories ?? [];
    setOptions(fields.category, known, "Any");
    for (const name of ["category", "max_per_category"]) fields[name].closest("label").hidden = known.length === 0;
    for (const [name, column] of Object.entries(SLIDERS)) {
      const isUsable = column === null || (column in columns && columns[column] !== "large_string");
      fields[name].closest("label").hidden = !isUsable;
    }
  }

  refresh() {
    return answer({
      signal: this.#next(),
      line: this.#line,
      busy: this.#list,
      ask: (options) => postJson("v1/recommend", this.#query(), options),
      show: (found) => this.#show(found),
      retry: () => this.refresh(),
    });
  }

  #query() {
    const fields = this.#controls.elements;
    const query = { history: this.#watched.videos.map((video) => video.video_id), top_k: TOP_K };
    for (const name of Object.keys(SLIDERS)) {
      if (!fields[name].closest("label").hidden) query[name] = Number(fields[name].value);
    }
    if (fields.category.value) query.filters = { category: fields.category.value };
    if (fields.max_per_category.value) query.max_per_category = Number(fields.max_per_category.value);
    if (fields.one_per_duplicate_group.checked) query.one_per_duplicate_group = true;
    return query;
  }

  #show({ results, unknown, fallback, version }) {
    const because = (why) => this.#because(why, fallback);
    this.#list.replaceChildren(...results.map((result) => row(result, { ...this.#views, because })));
    this.#views.seen(version);
    const watched = this.#watched.videos.length;
    const missing = unknown.length ? ` Not in the index: ${unknown.length} of the watched videos.` : "";
    if (results.length === 0) this.#line.note(`There are no videos to recommend. Change the filters.${missing}`);
    else if (fallback) this.#line.note(`${fallbackNote(watched)}${missing}`);
    else this.#line.say(`${plural(results.length, "video")}, from ${watched} watched.${missing}`);
  }

  #because({ closest, boosts }, fallback) {
    if (fallback) return Object.keys(boosts).length ? null : h("span", {}, "next in the catalogue"); // the boosts are the reason
    if (closest === null) return h("span", {}, "close to what you watched");
    const video = this.#watched.find(closest);
    return h("span", { class: "because" }, "because you watched ", quoted(video ? titleOf(video) : closest, { class: "cause" }));
  }

  #showValues() {
    for (const name of Object.keys(SLIDERS)) {
      const field = this.#controls.elements[name];
      const output = field.closest("label").querySelector("output");
      output.value = field.value === "0" ? "off" : decimals(Number(field.value));
    }
  }

  #showStrip() {
    const videos = this.#watched.videos.reverse(); // newest first
    this.#strip.replaceChildren(...videos.map((video) => this.#stripItem(video)));
    byId("strip-hint").hidden = videos.length > 0;
    byId("clear").hidden = videos.length === 0;
    for (const element of document.querySelectorAll("[data-count]")) element.textContent = String(videos.length);
  }

  #stripItem(video) {
    const title = titleOf(video);
    const show = h("button", { type: "button", class: "open" }, picture(video), quoted(title, { class: "title" }));
    show.addEventListener("click", () => this.#views.open(video));
    const remove = h("button", { type: "button", class: "remove", "aria-label": `Remove ${title}`, title: "Remove" });
    remove.append(icon("cross"));
    remove.addEventListener("click", () => this.#remove(video));
    return h("li", {}, show, remove);
  }

  #remove(video) {
    const place = [...this.#strip.children].findIndex((item) => item.contains(document.activeElement));
    this.#watched.remove(video.video_id);
    const left = this.#strip.children;
    const next = left[Math.min(Math.max(place, 0), left.length - 1)];
    (next?.querySelector(".remove") ?? byId("for-you-title")).focus(); // the button that had the focus is gone
  }
}

const fallbackNote = (watched) =>
  watched === 0
    ? "Nothing watched yet: these are popular and recent videos."
    : "None of the watched videos are in this index: these are popular and recent videos instead.";
