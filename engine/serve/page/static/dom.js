// Elements, icons and messages. Text from the server only ever enters as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** Create an element with properties and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const PATHS = {
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  moon: "M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5z",
  auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 3v18M12 8l6.5-2M12 12.5l9-2.5M12 17l8.5-2.5",
  settings: "M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4",
  dice: "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1M8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  again: "M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5",
  brush: "M14 6 19 3l2 2-3 5-7 7-4-4zM7 13c-3 0-3 4-5 5 2 2 7 3 8 0",
  erase: "M8 20 3.5 15.5a1.5 1.5 0 0 1 0-2L13 4a1.5 1.5 0 0 1 2 0l5.5 5.5a1.5 1.5 0 0 1 0 2L12 20zM8.5 8.5l7 7M8 20h13",
  undo: "M9 6 4 11l5 5M4 11h10a6 6 0 0 1 0 12h-2",
  invert: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 3v18M12 6h4M12 9h6.5M12 12h7M12 15h6.5M12 18h4",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  enlarge: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  close: "M6 6l12 12M18 6 6 18",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5M14 4l-4 16",
  png: "M12 15V3M7 8l5-5 5 5M4 15v5h16v-5",
};

/** Put an icon into a button, before its text. */
export function setIcon(button, name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true", class: "glyph" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  button.querySelector("svg")?.remove();
  button.prepend(svg);
}

/** Show a message for some seconds, with an action if there is one. */
export function toast(text, { error = false, action = null, run = null } = {}) {
  const note = el("div", { className: error ? "toast error" : "toast" }, el("span", {}, text));
  const remove = () => note.remove();
  if (action) note.append(el("button", { type: "button", className: "link", onclick: () => (remove(), run()) }, action));
  note.append(el("button", { type: "button", className: "link", "aria-label": "Dismiss", onclick: remove }, "×"));
  $("toasts").append(note);
  setTimeout(remove, error ? 12000 : 6000);
}

/** Say something to screen readers only. */
export const announce = (text) => ($("announce").textContent = text);

/** A value of this browser, or the default where storage is blocked or holds something else. */
export function stored(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`calotype.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(`calotype.${name}`, JSON.stringify(value));
  } catch {
    // Storage is blocked or full: the page works, and forgets.
  }
}
