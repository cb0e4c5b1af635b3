// What the page remembers until its tab is closed. A browser may forbid that: the page then forgets on reload.

export function readSession(key, otherwise) {
  try {
    const text = sessionStorage.getItem(key);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

export function writeSession(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    // forbidden, or full
  }
}
