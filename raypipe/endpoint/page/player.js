// The player in the panel of a video. Its address is a signed link: a <video> cannot send a header with the token.

import { hasToken, postJson, request, thumbnailPath, videoPath } from "./api.js";
import { h } from "./dom.js";

const PROBE = { headers: { Range: "bytes=0-0" } };

export class Player {
  #element = null;
  #poster = null; // the object URL of the picture
  #ended = new AbortController();

  // Replace `picture` with a player, if the server lets this page play the video. `say` shows why it does not play.
  async show(video, picture, { say, start }) {
    this.close();
    const ended = new AbortController();
    this.#ended = ended;
    try {
      const link = await this.#link(video, ended.signal);
      if (!link.playable) say(link.reason);
      else await this.#play(video, link, picture, { say, start, signal: ended.signal });
    } catch (error) {
      if (!ended.signal.aborted) say(`The video cannot be played: ${error.message}`);
    }
  }

  // Stop playing, so that the server stops sending.
  close() {
    this.#ended.abort();
    this.#element?.removeAttribute("src");
    this.#element?.load();
    this.#element = null;
    if (this.#poster) URL.revokeObjectURL(this.#poster);
    this.#poster = null;
  }

  async #link(video, signal) {
    const link = await postJson(`${videoPath(video.video_id)}/play`, null, { signal });
    return { ...link, url: link.url.replace(/^\//, "") }; // relative to the page, like all other addresses
  }

  async #play(video, link, picture, { say, start, signal }) {
    const poster = await this.#posterOf(video, signal);
    signal.throwIfAborted();
    const player = h("video", { controls: true, playsinline: true, preload: "metadata", poster, src: link.url });
    this.#element = player;
    player.addEventListener("error", () => this.#failed(player, video, { say, signal }));
    player.addEventListener("loadedmetadata", () => {
      if (player.videoWidth === 0) say(`This browser cannot show the pictures of this video (${formatOf(video)}).`);
    });
    picture.replaceChildren(player);
    if (start) player.play().catch(() => {}); // the browser may not allow it; the controls are there
  }

  async #posterOf(video, signal) {
    if (!video.has_thumbnail) return null;
    if (!hasToken()) return thumbnailPath(video.video_id);
    try {
      const response = await request(thumbnailPath(video.video_id), { quiet: true, signal });
      this.#poster = URL.createObjectURL(await response.blob());
      return this.#poster;
    } catch {
      return null;
    }
  }

  // The event says nothing about the reason, so ask the server for a byte. A link that has expired is replaced.
  async #failed(player, video, { say, signal }) {
    if (signal.aborted || player !== this.#element) return;
    const at = player.currentTime;
    const response = await fetch(player.src, { ...PROBE, signal }).catch(() => null);
    if (signal.aborted) return;
    if (response?.ok) {
      say(`This browser cannot play this format (${formatOf(video)}).`);
      return;
    }
    const error = response ? (await response.json().catch(() => null))?.error : null;
    if (error?.code !== "expired_link") {
      say(`The video cannot be played: ${error?.message ?? "the server cannot be reached."}`);
      return;
    }
    try {
      const link = await this.#link(video, signal);
      player.src = link.url;
      player.currentTime = at;
      await player.play();
    } catch (failed) {
      if (!signal.aborted) say(`The video cannot be played: ${failed.message}`);
    }
  }
}

function formatOf({ video_id: videoId, video_uri: uri }) {
  const found = /\.([A-Za-z0-9]{1,5})$/.exec(uri ?? videoId);
  return found ? found[1].toUpperCase() : "unknown";
}
