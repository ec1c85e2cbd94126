// What the pages share: requests to their own server, and text of a model made fit to show.

const TOKEN = new URLSearchParams(location.search).get("token");

/** The headers of a request to this server. */
export function headers() {
  return { "Content-Type": "application/json", ...(TOKEN ? { "X-Token": TOKEN } : {}) };
}

/** Sends `body` to /api/`path`. Throws an Error with the server's words; its `offline` says that nobody answered. */
export async function call(path, body) {
  let response;
  try {
    response = await fetch(`/api/${path}`, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  } catch {
    throw Object.assign(new Error("The server does not answer."), { offline: true });
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`The server answered with status ${response.status} and no reason.`);
  }
  if (!response.ok) throw new Error(answer.error ?? `The server answered with status ${response.status}.`);
  return answer;
}

// Controls but tab and line feed, and marks that turn the direction of text.
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]/g;

/** The text with what would hide or turn other text written out. */
export function visible(text) {
  return text.replace(CONTROLS, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
