// The grid of all videos, one page at a time, with a search and filters.

import { getJson, withQuery } from "./api.js";
import { answer, byId, debounce, onlyLatest, plural, setOptions, statusLine } from "./dom.js";
import { card } from "./videos.js";

const PAGE = 48;

export class Catalogue {
  #form = byId("search");
  #grid = byId("grid");
  #more = byId("more");
  #line = statusLine(byId("catalogue-status"));
  #next = onlyLatest();
  #views;

  constructor(views) {
    this.#views = views;
    const search = () => this.search();
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.search();
    });
    this.#form.elements.text.addEventListener("input", debounce(200, search));
    this.#form.elements.category.addEventListener("change", search);
    this.#form.elements.label.addEventListener("change", search);
    this.#more.addEventListener("click", () => this.#load(this.#grid.children.length));
  }

  describe({ categories, labels }) {
    for (const [name, values] of Object.entries({ category: categories ?? [], label: labels ?? [] })) {
      const select = this.#form.elements[name];
      setOptions(select, values, name === "category" ? "All categories" : "All labels");
      select.closest("label").hidden = values.length === 0;
    }
  }

  search() {
    return this.#load(0);
  }

  #load(offset) {
    const { text, category, label } = Object.fromEntries(new FormData(this.#form));
    const path = withQuery("v1/videos", { text: text.trim(), category, label, offset, limit: PAGE });
    return answer({
      signal: this.#next(),
      line: this.#line,
      busy: this.#grid,
      ask: (options) => getJson(path, options),
      show: ({ videos, total }) => this.#show(videos, total, offset),
      retry: () => this.#load(offset),
    });
  }

  #show(videos, total, offset) {
    const cards = videos.map((video) => card(video, this.#views));
    if (offset === 0) this.#grid.replaceChildren(...cards);
    else this.#grid.append(...cards);
    const shown = this.#grid.children.length;
    this.#more.hidden = shown >= total || videos.length === 0;
    const all = plural(total, "video");
    if (total === 0) this.#line.say("No matching videos. Try fewer words or another filter.");
    else this.#line.say(shown < total ? `${shown.toLocaleString("en")} of ${all}` : all);
    if (offset > 0) cards[0]?.querySelector("button").focus({ preventScroll: true });
  }
}
