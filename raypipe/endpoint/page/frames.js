// The strip of bars that shows what each frame of a video adds to its label.

import { decimals, h, quoted } from "./dom.js";
import { duration } from "./videos.js";

const MOST_REM = 3; // the width of a frame's bar

// Return null if there is nothing to show: the server gave a reason in place of scores, or every score is 0.
export function frameStrip(label, scores) {
  const frames = (scores?.frames ?? []).map((frame) => ({ ...frame, sum: frame.probe + frame.order }));
  const most = Math.max(0, ...frames.map(({ sum }) => Math.abs(sum)));
  if (most === 0) return null;
  const bars = frames.map((frame) => {
    const text = described(frame);
    return h("li", { title: text }, h("span", { class: "unseen" }, text), bar(frame.sum / most), picture(frame));
  });
  const ends = frames.length > 1 ? [frames[0], frames.at(-1)] : frames;
  const times = ends.map((frame) => h("span", {}, moment(frame.pts_seconds)));
  const title = h("figcaption", {}, "What each frame adds to ", quoted(label), ": above the line for it, below against it");
  const list = h("ol", { role: "list" }, ...bars);
  const axis = h("p", { class: "times", "aria-hidden": "true" }, ...times);
  for (const part of [list, axis]) part.style.maxWidth = `${frames.length * MOST_REM}rem`;
  return h("figure", { class: "frames" }, title, list, axis);
}

// `share` is between -1 and 1.
function bar(share) {
  const part = share === 0 ? null : h("span", { class: share < 0 ? "against" : "for" });
  if (part) part.style.height = `${Math.abs(share) * 50}%`;
  return h("span", { class: "track", "aria-hidden": "true" }, part);
}

const picture = ({ picture: jpeg }) => (jpeg ? h("img", { alt: "", src: `data:image/jpeg;base64,${jpeg}` }) : null);

function described({ pts_seconds: seconds, probe, order, sum }) {
  const parts = order === 0 || probe === 0 ? "" : ` (alone ${signed(probe)}, in its order ${signed(order)})`;
  return `${moment(seconds)}: ${signed(sum)}${parts}`;
}

const signed = (number) => (number < 0 ? "" : "+") + decimals(number);

const moment = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : duration(seconds));
