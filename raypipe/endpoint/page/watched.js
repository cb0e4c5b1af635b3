// The watched videos, oldest first, on which the recommendations are based. They are kept until the tab is closed.

import { readSession, writeSession } from "./session.js";

const KEY = "raypipe.watched";
const MOST = 50; // the oldest are dropped

export class Watched extends EventTarget {
  #videos = load();

  get videos() {
    return [...this.#videos];
  }

  has(videoId) {
    return this.#videos.some((video) => video.video_id === videoId);
  }

  find(videoId) {
    return this.#videos.find((video) => video.video_id === videoId);
  }

  toggle(video) {
    const others = this.#videos.filter(({ video_id: id }) => id !== video.video_id);
    this.#set(this.has(video.video_id) ? others : [...others, essence(video)].slice(-MOST));
  }

  remove(videoId) {
    this.#set(this.#videos.filter((video) => video.video_id !== videoId));
  }

  clear() {
    this.#set([]);
  }

  #set(videos) {
    this.#videos = videos;
    writeSession(KEY, videos);
    this.dispatchEvent(new Event("change"));
  }
}

// The fields of a video that the strip shows.
function essence({ video_id, has_thumbnail, duration_seconds, label, fields }) {
  const { title, category } = fields ?? {};
  return { video_id, has_thumbnail, duration_seconds, label, fields: { title, category } };
}

function load() {
  const kept = readSession(KEY, []);
  return Array.isArray(kept) ? kept.filter((video) => typeof video?.video_id === "string") : [];
}
