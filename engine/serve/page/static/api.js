// The server's JSON API. Every request carries the API key of this browser, where there is one.
import { store, stored } from "./dom.js";

export const key = { get: () => stored("key", ""), set: (value) => store("key", value) };

// A seed has up to 64 bits, more than a number of JavaScript holds: on the way in and out it is a string.
const parse = (text) => JSON.parse(text.replaceAll(/"seed": ?(\d{16,})/g, '"seed":"$1"'));
export const print = (body) => JSON.stringify(body).replace(/"seed":"(\d+)"/, '"seed":$1');

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

/** Send a request and return the answer's JSON; an Error with the server's message and `status` if it refuses. */
export async function request(path, { method = "GET", body = undefined, signal = undefined } = {}) {
  const response = await send(path, {
    method,
    signal,
    headers: { ...headers(), ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
    body: body === undefined ? undefined : print(body),
  });
  return response.status === 204 ? null : parse(await response.text());
}

/** Fetch an image as a Blob. */
export const blob = async (path) => (await send(path, { headers: headers() })).blob();

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", referrerPolicy: "no-referrer" });
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw Object.assign(new Error("The server does not answer."), { status: 0 });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const error = answer.error ?? answer.detail ?? answer;
  const message = typeof error === "string" ? error : (error.message ?? `The server answered ${response.status}.`);
  const wait = response.headers.get("Retry-After");
  throw Object.assign(new Error(message), { status: response.status, retryAfter: wait ? Number(wait) : null });
}

/** Yield {event, data} of a stream of server-sent events. EventSource cannot send the key, so this reads the body. */
export async function* events(path, signal) {
  const response = await send(path, { headers: { ...headers(), Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r", "");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const data = lines.filter((line) => line[1] === "data").map((line) => line[2]);
      const event = lines.find((line) => line[1] === "event")?.[2] ?? "message";
      if (data.length) yield { event, data: parse(data.join("\n")) };
    }
  }
}
