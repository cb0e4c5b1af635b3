// How one video looks: as a card of the catalogue, and as a row of a ranking with its score and the reasons.

import { decimals, h, icon, quoted } from "./dom.js";
import { picture } from "./pictures.js";

export const titleOf = (video) => String(video.fields?.title || video.video_id);

export function duration(seconds) {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// Category and predicted label, side by side.
function kinds(video) {
  const { category } = video.fields ?? {};
  const parts = [];
  if (category) parts.push(quoted(category, { class: "category" }));
  if (video.label) {
    const predicted = h("span", { class: "unseen" }, "predicted ");
    parts.push(h("span", { class: "label", title: "predicted label" }, predicted, quoted(video.label)));
  }
  return h("span", { class: "kinds" }, ...parts);
}

function pictureWithDuration(video) {
  const frame = picture(video);
  if (typeof video.duration_seconds === "number") {
    frame.append(h("span", { class: "duration" }, duration(video.duration_seconds)));
  }
  return frame;
}

// A button that adds the video to the watched ones or removes it. `repaintWatchButtons` keeps all buttons up to date.
export function watchButton(video, watched, { withText = false } = {}) {
  const button = h("button", { type: "button", class: withText ? "watch wide" : "watch" });
  button.dataset.watch = video.video_id;
  button.addEventListener("click", () => watched.toggle(video));
  paintWatchButton(button, watched, titleOf(video));
  return button;
}

function paintWatchButton(button, watched, title) {
  const on = watched.has(button.dataset.watch);
  button.setAttribute("aria-pressed", String(on));
  if (button.classList.contains("wide")) {
    button.replaceChildren(icon(on ? "check" : "plus"), on ? "Watched" : "Add to watched");
    return;
  }
  button.title = on ? "Remove from watched" : "Add to watched";
  if (title !== undefined) button.setAttribute("aria-label", `Watched: ${title}`);
  button.replaceChildren(icon(on ? "check" : "plus"));
}

export function repaintWatchButtons(watched) {
  for (const button of document.querySelectorAll("[data-watch]")) paintWatchButton(button, watched);
}

export function card(video, { open, watched }) {
  const name = quoted(titleOf(video), { class: "title" });
  const show = h("button", { type: "button", class: "open" }, pictureWithDuration(video), name, kinds(video));
  show.addEventListener("click", () => open(video));
  return h("li", { class: "card" }, show, watchButton(video, watched));
}

// A result. `because` makes the first of its reasons, or null. `dislike` is called if the user does not want the video.
export function row({ video, score, why }, { open, watched, because, dislike }) {
  const name = quoted(titleOf(video), { class: "title" });
  const words = h("span", { class: "words" }, name, kinds(video), reasons(why, because));
  const show = h("button", { type: "button", class: "open" }, pictureWithDuration(video), words);
  show.addEventListener("click", () => open(video));
  const number = h("span", { class: "score", title: "score" }, h("span", { class: "unseen" }, "score "), decimals(score));
  const item = h("li", { class: "row" }, show, number, watchButton(video, watched));
  if (dislike) {
    const label = `Not for me: ${titleOf(video)}`;
    const button = h("button", { type: "button", class: "quiet dislike", "aria-label": label }, "Not for me");
    button.addEventListener("click", () => dislike(video, item));
    item.append(button);
  }
  return item;
}

// The reason for rows that are similar to one video, which the user sees above them.
export const similarity = ({ similarity: cosine }) =>
  typeof cosine === "number" ? h("span", {}, `similarity ${decimals(cosine)}`) : null;

function reasons(why, because) {
  const parts = [because(why)];
  for (const [name, value] of Object.entries(why.boosts ?? {})) {
    const text = `${name} ${value < 0 ? "" : "+"}${decimals(value)}`;
    parts.push(h("span", { class: "boost" }, text));
  }
  return h("span", { class: "why" }, ...parts);
}

// The labels that a classifier returns, best first, each with a bar.
export function labelBars(top) {
  const bars = top.map(({ label, score }) => {
    const bar = h("span", { class: "meter", "aria-hidden": "true" }, h("span"));
    bar.firstChild.style.width = `${Math.max(score * 100, 0.5)}%`;
    return h("li", {}, quoted(label, { class: "name" }), bar, h("span", { class: "score" }, percent(score)));
  });
  return h("ol", { class: "labels", role: "list" }, ...bars);
}

export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
