// Small helpers. Data becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// Make an element: `class`, `on…` listeners and attributes (true: without value; false and null: none), then children.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Make an icon from a symbol in index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// Isolate text from elsewhere, so that its writing direction does not affect the text around it.
export const quoted = (text, properties = {}) => h("bdi", properties, String(text));

export const plural = (count, noun, nouns = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : nouns}`;

export const decimals = (number) => number.toFixed(2).replace("-", "−");

export function setOptions(select, values, everything) {
  const chosen = select.value;
  const options = values.map((value) => h("option", { value }, String(value)));
  select.replaceChildren(h("option", { value: "" }, everything), ...options);
  if (values.map(String).includes(chosen)) select.value = chosen;
}

// Each call cancels the previous request, so an older answer never arrives after a newer one.
export function onlyLatest() {
  let controller = new AbortController();
  return () => {
    controller.abort();
    controller = new AbortController();
    return controller.signal;
  };
}

export function debounce(milliseconds, act) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}

// A line that screen readers announce when it changes: what is shown, that the server is busy, or an error.
export function statusLine(element) {
  const put = (kind, ...children) => {
    element.dataset.kind = kind;
    element.replaceChildren(...children);
  };
  return {
    clear: () => put("plain"),
    say: (text) => put("plain", text),
    note: (text) => put("note", text),
    waiting: (seconds) => put("note", `The server is busy. Retrying in ${plural(seconds, "second")}.`),
    error: ({ message, lasting }, retry) => {
      const again = lasting ? null : h("button", { type: "button", onclick: retry }, "Retry");
      put("error", ...[h("span", {}, message), again].filter(Boolean));
    },
  };
}

// Ask, and show the answer unless a newer request was sent. Errors go to the line, with a button to retry.
export async function answer({ signal, line, busy, ask, show, retry }) {
  busy.setAttribute("aria-busy", "true");
  let found = null;
  let failed = null;
  try {
    found = await ask({ signal, onWait: line.waiting });
  } catch (error) {
    failed = error;
  }
  if (signal.aborted) return;
  busy.removeAttribute("aria-busy");
  if (failed) line.error(failed, retry);
  else show(found);
}
