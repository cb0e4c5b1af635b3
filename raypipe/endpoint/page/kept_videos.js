// A list of videos, oldest first: the watched ones, or the disliked ones. It is kept until the tab is closed.

import { readSession, writeSession } from "./session.js";

const MOST = 50; // the oldest are dropped

export class KeptVideos extends EventTarget {
  #key;
  #videos;

  constructor(key) {
    super();
    this.#key = key;
    this.#videos = load(key);
  }

  get ids() {
    return this.#videos.map((video) => video.video_id);
  }

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
    writeSession(this.#key, videos);
    this.dispatchEvent(new Event("change"));
  }
}

// The fields of a video that the strip and the player need.
function essence({ video_id, video_uri, has_thumbnail, duration_seconds, label, fields }) {
  const { title, category } = fields ?? {};
  return { video_id, video_uri, has_thumbnail, duration_seconds, label, fields: { title, category } };
}

function load(key) {
  const kept = readSession(key, []);
  return Array.isArray(kept) ? kept.filter((video) => typeof video?.video_id === "string") : [];
}
