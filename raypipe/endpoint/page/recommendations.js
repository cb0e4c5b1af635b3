// The strips of watched and disliked videos, and the recommendations based on them.

import { postJson } from "./api.js";
import { answer, byId, debounce, decimals, h, icon, onlyLatest, plural, quoted, setOptions, statusLine } from "./dom.js";
import { picture } from "./pictures.js";
import { repaintWatchButtons, row, titleOf } from "./videos.js";

const TOP_K = 20;
const SLIDERS = { diversity: null, freshness: "published_at", popularity: "popularity" }; // the column that each needs

const STRATEGIES = {
  ranker: "Learned from watch histories",
  transitions: "What others watched next",
  content: "Similar content",
  popular: "Popular and recent",
};

export class Recommendations {
  #strip = byId("strip");
  #dislikes = byId("dislikes");
  #controls = byId("controls");
  #list = byId("recommended");
  #line = statusLine(byId("recommended-status"));
  #next = onlyLatest();
  #views;
  #watched;
  #disliked;
  #focusAt = null; // the place of the row whose button had the focus

  constructor(views) {
    this.#views = views;
    this.#watched = views.watched;
    this.#watched.addEventListener("change", () => {
      repaintWatchButtons(this.#watched);
      this.#showStrip();
      this.refresh();
    });
    this.#disliked = views.disliked;
    this.#disliked.addEventListener("change", () => {
      this.#showDislikes();
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
    byId("clear-dislikes").addEventListener("click", () => {
      this.#disliked.clear();
      byId("for-you-title").focus();
    });
    this.#showStrip();
    this.#showDislikes();
    this.#showValues();
  }

  describe({ categories, columns, strategies }) {
    const fields = this.#controls.elements;
    const usable = strategies ?? [];
    setOptions(fields.strategy, usable, "Automatic");
    for (const option of fields.strategy.options) option.textContent = STRATEGIES[option.value] ?? option.textContent;
    fields.strategy.closest("label").hidden = usable.length < 2;
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
    const query = { history: this.#watched.ids, top_k: TOP_K };
    if (this.#disliked.ids.length > 0) query.dislikes = this.#disliked.ids;
    if (fields.strategy.value) query.strategy = fields.strategy.value;
    for (const name of Object.keys(SLIDERS)) {
      if (!fields[name].closest("label").hidden) query[name] = Number(fields[name].value);
    }
    if (fields.category.value) query.filters = { category: fields.category.value };
    if (fields.max_per_category.value) query.max_per_category = Number(fields.max_per_category.value);
    if (fields.one_per_duplicate_group.checked) query.one_per_duplicate_group = true;
    return query;
  }

  #show({ results, unknown, fallback, strategy, version }) {
    const because = (why) => this.#because(why);
    const dislike = (video, item) => this.#dislike(video, item);
    this.#list.replaceChildren(...results.map((result) => row(result, { ...this.#views, because, dislike })));
    this.#restoreFocus();
    this.#views.seen(version);
    const watched = this.#watched.videos.length;
    const missing = unknown.length ? ` Not in the index: ${unknown.length} of the watched videos.` : "";
    if (results.length === 0) this.#line.note(`There are no videos to recommend. Change the filters.${missing}`);
    else if (fallback) this.#line.note(`${fallbackNote(watched)}${missing}`);
    else {
      const how = STRATEGIES[strategy].toLowerCase();
      this.#line.say(`${plural(results.length, "video")}, from ${watched} watched. Ranked by: ${how}.${missing}`);
    }
  }

  #because({ reason, after, num_users: numUsers, closest, similarity, boosts }) {
    if (reason === "watched_after") {
      const people = numUsers === null ? "" : ` by ${plural(numUsers, "person", "people")}`;
      return h("span", { class: "because" }, "watched after ", this.#cause(after), people);
    }
    if (reason === "popular") return h("span", {}, Object.keys(boosts).length ? "popular" : "next in the catalogue");
    if (closest === null) return h("span", {}, "similar to what you watched");
    const cosine = similarity === null ? "" : ` (${decimals(similarity)})`;
    return h("span", { class: "because" }, "similar to ", this.#cause(closest), cosine);
  }

  #cause(videoId) {
    const video = this.#watched.find(videoId);
    return quoted(video ? titleOf(video) : videoId, { class: "cause" });
  }

  #dislike(video, item) {
    this.#focusAt = [...this.#list.children].indexOf(item);
    this.#disliked.toggle(video);
  }

  #restoreFocus() {
    if (this.#focusAt === null) return;
    const rows = this.#list.children;
    const next = rows[Math.min(this.#focusAt, rows.length - 1)];
    this.#focusAt = null;
    (next?.querySelector(".dislike") ?? byId("for-you-title")).focus({ preventScroll: true });
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
    this.#strip.replaceChildren(...videos.map((video) => this.#stripItem(video, this.#strip, this.#watched)));
    byId("strip-hint").hidden = videos.length > 0;
    byId("clear").hidden = videos.length === 0;
    for (const element of document.querySelectorAll("[data-count]")) element.textContent = String(videos.length);
  }

  #showDislikes() {
    const videos = this.#disliked.videos.reverse(); // newest first
    const items = videos.map((video) => this.#stripItem(video, this.#dislikes, this.#disliked));
    this.#dislikes.replaceChildren(...items);
    byId("disliked").hidden = videos.length === 0;
    byId("dislikes-count").textContent = String(videos.length);
  }

  #stripItem(video, strip, kept) {
    const title = titleOf(video);
    const show = h("button", { type: "button", class: "open" }, picture(video), quoted(title, { class: "title" }));
    show.addEventListener("click", () => this.#views.open(video));
    const remove = h("button", { type: "button", class: "remove", "aria-label": `Remove ${title}`, title: "Remove" });
    remove.append(icon("cross"));
    remove.addEventListener("click", () => removeFrom(strip, kept, video));
    return h("li", {}, show, remove);
  }

}

function removeFrom(strip, kept, video) {
  const place = [...strip.children].findIndex((item) => item.contains(document.activeElement));
  kept.remove(video.video_id);
  const left = strip.children;
  const next = left[Math.min(Math.max(place, 0), left.length - 1)];
  (next?.querySelector(".remove") ?? byId("for-you-title")).focus(); // the button that had the focus is gone
}

const fallbackNote = (watched) =>
  watched === 0
    ? "Nothing watched yet: these are popular and recent videos."
    : "None of the watched videos are in this index: these are popular and recent videos instead.";
