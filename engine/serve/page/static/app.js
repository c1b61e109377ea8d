// The page: asks the server for its options and wires the form, the jobs and the gallery.
import { key, request } from "./api.js";
import { programs } from "./code.js";
import { $, el, setIcon, store, stored, toast } from "./dom.js";
import * as form from "./form.js";
import * as gallery from "./gallery.js";
import * as jobs from "./jobs.js";
import { settingsOf, textChunks } from "./png.js";

const complain = (failure) => {
  const wait = failure.retryAfter ? ` Try again in ${failure.retryAfter} s.` : "";
  toast(failure.message + wait, { error: true });
};

async function generate() {
  try {
    const body = form.read();
    form.keep();
    await jobs.submit(body);
    if (matchMedia("(max-width: 899px)").matches) $("stage").scrollIntoView({ behavior: "smooth", block: "start" });
  } catch (failure) {
    if (failure.status === 401) openSettings();
    complain(failure);
  }
}

/** Take the settings in a PNG. */
async function takeSettings(file) {
  const texts = await textChunks(file);
  const result = texts && settingsOf(texts, form.schedulers());
  if (!result) {
    const use = { action: "Use as image", run: () => form.setImage(file).catch(complain) };
    toast(`${file.name} has no settings.`, file.type.startsWith("image/") ? use : {});
    return;
  }
  const lost = [...result.lost, ...form.apply(result.settings)];
  form.keep();
  toast(`Settings of ${file.name} taken${lost.length ? `, without ${lost.join(", ")}` : ""}.`);
}

let shownCode = {};
let language = "curl";

function showCode(body) {
  shownCode = programs(body, Boolean(key.get()));
  selectTab(language);
  $("code").showModal();
}

function selectTab(name) {
  language = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const selected = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    if (selected) $("code-text").setAttribute("aria-labelledby", tab.id);
  }
  $("code-text").textContent = shownCode[name];
}

/** Copy the shown program. Outside of HTTPS and localhost a page has no clipboard, so the text is selected instead. */
async function copyCode() {
  try {
    await navigator.clipboard.writeText($("code-text").textContent);
    toast("Copied.");
  } catch {
    getSelection().selectAllChildren($("code-text"));
    toast("Press Ctrl+C to copy the selected text.");
  }
}

const THEMES = ["auto", "light", "dark"];
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("calotype.theme", name);
  } catch {
    // Storage is blocked: the theme lasts until the page closes.
  }
  setIcon($("theme"), { auto: "auto", light: "sun", dark: "moon" }[name]);
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  $("theme").title = `Theme: ${name}`;
}

function openSettings() {
  $("key").value = key.get();
  $("previews").value = stored("previews", "auto");
  $("settings").showModal();
}

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]:not(#large-editor)")) {
      event.preventDefault();
      if (!$("generate").disabled) generate();
    }
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) jobs.cancel();
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (!file || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    form.setImage(file).catch(complain);
  });
}

/** Take a PNG that is dropped anywhere but on the places for images. */
function listenToDrops() {
  let depth = 0; // dragenter and dragleave come for each element below the pointer
  const done = () => {
    depth = 0;
    $("dropping").hidden = true;
  };
  const enter = (by) => (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    depth += by;
    $("dropping").hidden = depth === 0;
  };
  document.addEventListener("dragenter", enter(1));
  document.addEventListener("dragleave", enter(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("dropped", done);
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    done();
    if (event.dataTransfer.files[0]) takeSettings(event.dataTransfer.files[0]).catch(complain);
  });
}

function listen() {
  $("form").addEventListener("submit", (event) => (event.preventDefault(), generate()));
  $("cancel").onclick = () => jobs.cancel();
  $("theme").onclick = () => setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3]);
  $("open-settings").onclick = openSettings;
  $("key").onchange = () => {
    key.set($("key").value.trim());
    connect();
  };
  $("previews").onchange = () => store("previews", $("previews").value);
  $("copy-as").onclick = () => {
    try {
      showCode(form.read());
    } catch (failure) {
      complain(failure);
    }
  };
  for (const name of ["curl", "python", "cli"]) $(`tab-${name}`).onclick = () => selectTab(name);
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: 2 }[event.key];
    if (!by) return;
    const names = ["curl", "python", "cli"];
    selectTab(names[(names.indexOf(language) + by) % 3]);
    $(`tab-${language}`).focus();
  });
  $("code-copy").onclick = copyCode;
  $("open-png").onclick = () => $("png-file").click();
  $("png-file").onchange = () => {
    const [file] = $("png-file").files;
    $("png-file").value = "";
    if (file) takeSettings(file).catch(complain);
  };
  document.addEventListener("finished", () => form.model().loaded || connect()); // now it is, and its sizes are known
  listenToKeys();
  listenToDrops();
}

let connected = false;

/** Ask for the options. Without them the form cannot submit, so the page says what to do. */
async function connect() {
  try {
    form.setOptions(await request("options"));
    if (!connected) form.restore();
    connected = true;
    $("generate").disabled = false;
    jobs.resume();
  } catch (failure) {
    $("generate").disabled = true;
    if (failure.status === 401) openSettings();
    toast(failure.status === 401 ? "This server needs an API key." : failure.message, { error: true, action: "Retry", run: connect });
  }
}

setTheme(THEMES.includes(document.documentElement.dataset.theme) ? document.documentElement.dataset.theme : "auto");
setIcon($("open-settings"), "settings");
$("view").replaceChildren(jobs.hint("Write a prompt and press ", el("kbd", {}, "Ctrl"), " ", el("kbd", {}, "Enter"), "."));
form.start();
listen();
await gallery.start({
  reuse: (settings) => {
    const lost = form.apply(settings);
    form.keep();
    toast(`Settings taken${lost.length ? `, without ${lost.join(", ")}` : ""}.`);
  },
  useAsImage: (blob) => form.setImage(blob).catch(complain),
  code: showCode,
});
await connect();
document.documentElement.dataset.ready = "true";
