// Thumbnails. With a token they are fetched, because an <img> cannot send a header; without one the browser loads them.

import { hasToken, request, thumbnailPath } from "./api.js";
import { h, icon } from "./dom.js";

const MOST_FETCHES = 4; // in parallel: a browser opens six connections, and answers matter more than pictures

const waiting = [];
let running = 0;

const nearView = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter(({ isIntersecting }) => isIntersecting)) {
      nearView.unobserve(entry.target);
      waiting.push(entry.target);
    }
    fetchNext();
  },
  { rootMargin: "300px" },
);

// The picture of a video, or a placeholder. Screen readers skip it, because the title is next to it.
export function picture(video) {
  const frame = h("span", { class: "picture" });
  if (!video.has_thumbnail) {
    frame.append(icon("film"));
    return frame;
  }
  const image = h("img", { alt: "", decoding: "async", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(icon("film")));
  if (hasToken()) {
    image.dataset.videoId = video.video_id;
    nearView.observe(image);
  } else {
    image.src = thumbnailPath(video.video_id);
  }
  frame.append(image);
  return frame;
}

function fetchNext() {
  while (running < MOST_FETCHES && waiting.length > 0) {
    const image = waiting.shift();
    if (!image.isConnected) continue;
    running += 1;
    fetchInto(image).finally(() => {
      running -= 1;
      fetchNext();
    });
  }
}

async function fetchInto(image) {
  try {
    const response = await request(thumbnailPath(image.dataset.videoId), { quiet: true });
    const url = URL.createObjectURL(await response.blob());
    for (const event of ["load", "error"]) image.addEventListener(event, () => URL.revokeObjectURL(url), { once: true });
    image.loading = "eager"; // it is in view; the URL of a lazy one that leaves the view is never revoked
    image.src = url;
  } catch {
    image.replaceWith(icon("film"));
  }
}
