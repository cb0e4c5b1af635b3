// Talks to the endpoint: sends the token, waits while the server is busy, and turns every error into one line of text.

import { readSession, writeSession } from "./session.js";

const TOKEN = "raypipe.token";
const MOST_WAITS = 3; // how many times one request waits for a busy server
const LONGEST_WAIT_SECONDS = 30;

let token = readSession(TOKEN, null);
let asking = null; // the promise of a new token, which all requests that need one share
let prompt = async () => null;

export class ApiError extends Error {
  lasting = false; // the same request would fail again
}

export const hasToken = () => token !== null;

// `ask(why)` shows a form; it resolves to a token, or to null if the user gives none.
export function askForTokensWith(ask) {
  prompt = ask;
}

export const videoPath = (videoId) => `v1/videos/${encodeURIComponent(videoId)}`;

export const thumbnailPath = (videoId) => `${videoPath(videoId)}/thumbnail`;

export function withQuery(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null);
  const query = new URLSearchParams(given).toString();
  return query ? `${path}?${query}` : path;
}

export async function getJson(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (options?.signal?.aborted) throw error;
    throw new ApiError("The server's answer cannot be read.");
  }
}

export async function postJson(path, body, options) {
  return getJson(path, { ...options, method: "POST", type: "application/json", body: JSON.stringify(body) });
}

// `onWait(seconds)` is called before every wait. `quiet` requests never ask for a token.
export async function request(path, options = {}) {
  let waits = 0;
  for (;;) {
    const used = token;
    const response = await send(path, used, options);
    if (response.ok) return response;
    if (response.status === 401 && !options.quiet) {
      await renewToken(used);
      options.signal?.throwIfAborted();
    } else if (response.status === 429 && waits < MOST_WAITS) {
      waits += 1;
      const seconds = retryAfterSeconds(response);
      options.onWait?.(seconds);
      await pause(seconds, options.signal);
    } else {
      throw await errorOf(response);
    }
  }
}

async function send(path, used, { method = "GET", body, type, signal }) {
  const headers = new Headers();
  if (used !== null) headers.set("Authorization", `Bearer ${used}`);
  if (type) headers.set("Content-Type", type);
  try {
    return await fetch(path, { method, headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached, or closed the connection.");
  }
}

async function renewToken(refused) {
  if (token !== refused) return; // another request has already got a new one
  asking ??= prompt(refused === null ? "" : "The server refused that token.").finally(() => {
    asking = null;
  });
  const given = await asking;
  if (given === null) throw new ApiError("The server requires a token, but none was given.");
  token = given;
  writeSession(TOKEN, given);
}

function retryAfterSeconds(response) {
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "1", 10);
  return Math.min(Math.max(Number.isNaN(seconds) ? 1 : seconds, 1), LONGEST_WAIT_SECONDS);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  const id = response.status >= 500 ? (body?.request_id ?? response.headers.get("X-Request-Id")) : null;
  const error = new ApiError(id ? `${message} (request ${id})` : message);
  error.lasting = [400, 403, 404, 413, 415, 422].includes(response.status);
  return error;
}
