// The data that the page keeps until its tab is closed. If the browser forbids storage, a reload loses it.

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
    // storage is forbidden or full
  }
}
