// The panel of one video: a player, its details, and similar videos. Its address is #video=ID.

import { getJson, postJson, videoPath, withQuery } from "./api.js";
import { answer, byId, decimals, h, icon, onlyLatest, quoted, statusLine } from "./dom.js";
import { frameStrip } from "./frames.js";
import { picture } from "./pictures.js";
import { Player } from "./player.js";
import { duration, labelBars, percent, row, similarity, titleOf, watchButton } from "./videos.js";

const TOP_K = 12;
const HASH = "#video=";
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const MOMENT = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\d(?:\.\d+)?(?:Z|\+00:00)$/;

export class Detail {
  #dialog = byId("detail");
  #title = byId("detail-title");
  #back = byId("detail-back");
  #about = byId("detail-about");
  #list = byId("similar");
  #line = statusLine(byId("detail-status"));
  #player = new Player();
  #playerLine = statusLine(byId("detail-player"));
  #next = onlyLatest();
  #nextLabels = onlyLatest();
  #views;
  #canClassify = false;
  #canPlay = false;

  constructor(views) {
    this.#views = views;
    this.#dialog.addEventListener("close", () => this.#left());
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close(); // outside the panel
    });
    byId("detail-close").addEventListener("click", () => this.#dialog.close());
    this.#back.addEventListener("click", () => history.back());
    addEventListener("popstate", () => this.followAddress());
  }

  describe({ can_classify: canClassify, can_play: canPlay }) {
    this.#canClassify = canClassify;
    this.#canPlay = canPlay;
  }

  open(video) {
    const depth = this.#dialog.open ? (history.state?.depth ?? 0) + 1 : 0;
    history.pushState({ depth }, "", HASH + encodeURIComponent(video.video_id));
    this.#show(video, { start: true });
  }

  followAddress() {
    if (!location.hash.startsWith(HASH)) {
      this.#dialog.close();
      return;
    }
    const videoId = decoded(location.hash.slice(HASH.length));
    this.#reset(videoId);
    answer({
      signal: this.#next(),
      line: this.#line,
      busy: this.#list,
      ask: (options) => getJson(videoPath(videoId), options),
      show: (video) => this.#show(video),
      retry: () => this.followAddress(),
    });
  }

  #reset(title) {
    this.#nextLabels();
    this.#player.close();
    this.#playerLine.clear();
    this.#title.replaceChildren(quoted(title));
    this.#back.hidden = !(history.state?.depth > 0);
    this.#about.replaceChildren();
    this.#list.replaceChildren();
    this.#line.clear();
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#dialog.scrollTop = 0;
    this.#title.focus();
  }

  // `start`: play the video at once, because the user asked for it with a click.
  #show(video, { start = false } = {}) {
    this.#reset(titleOf(video));
    const frame = picture(video);
    this.#about.append(frame, facts(video), this.#actions(video));
    if (this.#canPlay && video.video_uri) {
      this.#player.show(video, frame, { say: this.#playerLine.note, start: start && !CALM.matches });
    }
    answer({
      signal: this.#next(),
      line: this.#line,
      busy: this.#list,
      ask: (options) => this.#ask(video.video_id, options),
      show: ([whole, { results, version }]) => {
        this.#about.querySelector("dl").replaceWith(facts(whole));
        this.#list.replaceChildren(...results.map((result) => row(result, { ...this.#views, because: similarity })));
        this.#line.say(results.length ? "" : "There are no other videos in the index.");
        this.#views.seen(version);
      },
      retry: () => this.#show(video),
    });
  }

  // Fetch the similar videos, and the whole video: the watched strip keeps only a part of it.
  #ask(videoId, options) {
    const similar = withQuery(`v1/similar/${encodeURIComponent(videoId)}`, { top_k: TOP_K });
    return Promise.all([getJson(videoPath(videoId), options), getJson(similar, options)]);
  }

  #actions(video) {
    const actions = h("div", { class: "actions" }, watchButton(video, this.#views.watched, { withText: true }));
    if (this.#canClassify && video.video_uri) {
      const ask = h("button", { type: "button" }, icon("spark"), "Classify");
      ask.addEventListener("click", () => this.#classify(video, actions, ask));
      actions.append(ask);
    }
    return actions;
  }

  #classify(video, actions, button) {
    answer({
      signal: this.#nextLabels(),
      line: this.#line,
      busy: button,
      ask: (options) => postJson(withQuery("v1/classify", { top_k: 5, frame_scores: true }), { uri: video.video_uri }, options),
      show: ({ top, frame_scores: scores }) => {
        this.#line.clear();
        button.remove();
        actions.after(...[labelBars(top), frameStrip(top[0].label, scores)].filter(Boolean));
        this.#title.focus(); // the button that had the focus is gone
      },
      retry: () => this.#classify(video, actions, button),
    });
  }

  #left() {
    this.#nextLabels();
    this.#player.close();
    this.#next(); // cancel the requests in flight
    if (location.hash.startsWith(HASH)) history.pushState(null, "", location.pathname + location.search);
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function facts(video) {
  const list = h("dl", { class: "facts" });
  const add = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    list.append(h("dt", {}, name), h("dd", {}, quoted(value)));
  };
  add("id", video.video_id);
  for (const [name, value] of Object.entries(video.fields ?? {})) {
    if (name !== "title") add(name.replaceAll("_", " "), shown(value));
  }
  const sure = typeof video.score === "number" ? ` · ${percent(video.score)}` : "";
  if (video.label) add("predicted label", `${video.label}${sure}`);
  if (typeof video.duration_seconds === "number") add("duration", duration(video.duration_seconds));
  if (typeof video.duplicate_group === "number") add("near-duplicates", `group ${video.duplicate_group}`);
  add("location", video.video_uri);
  return list;
}

function shown(value) {
  if (typeof value === "number" && !Number.isInteger(value)) return decimals(value);
  if (typeof value === "string") {
    return value.replace(MOMENT, (_, day, time) => (time === "00:00" ? day : `${day} ${time} UTC`));
  }
  return typeof value === "object" && value !== null ? JSON.stringify(value) : value;
}
