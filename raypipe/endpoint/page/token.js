// The form that asks for the token, if the server requires one.

import { byId } from "./dom.js";

const PRINTABLE = /^[\x21-\x7e]+$/; // what a header can contain

// Resolves to the token, or to null if the form is closed without one.
export function askForToken(why) {
  const dialog = byId("token");
  const form = byId("token-form");
  const line = byId("token-status");
  let given = null;
  line.textContent = why;
  const submit = (event) => {
    event.preventDefault();
    const text = form.elements.token.value.trim();
    if (!PRINTABLE.test(text)) {
      line.textContent = "A token consists of letters, digits and symbols, without spaces.";
      return;
    }
    given = text;
    dialog.close();
  };
  const cancel = () => dialog.close();
  return new Promise((resolve) => {
    const closed = () => {
      form.reset();
      form.removeEventListener("submit", submit);
      byId("token-cancel").removeEventListener("click", cancel);
      resolve(given);
    };
    form.addEventListener("submit", submit);
    byId("token-cancel").addEventListener("click", cancel);
    dialog.addEventListener("close", closed, { once: true });
    dialog.showModal();
  });
}
