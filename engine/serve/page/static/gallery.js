// The gallery of this browser, and the viewer of one image with its settings.
import { $, el, setIcon, toast } from "./dom.js";
import * as records from "./store.js";

const NAMES = {
  ...{ prompt: "Prompt", negative_prompt: "Negative prompt", model: "Model", scheduler: "Sampler", steps: "Steps" },
  ...{ guidance_scale: "Guidance", seed: "Seed", size: "Size", strength: "Strength", inputs: "Inputs", loras: "LoRAs" },
};
const shown = new Map(); // id -> {record, url}
let actions = {};
let open = null;

/** Return what is kept of a job's settings: without images, of which only the names stay. */
export function withoutImages({ image, mask_image: masked, control_image: control, ...settings }) {
  const inputs = [image && "image", masked && "mask", control && "control image"].filter(Boolean);
  return { ...settings, ...(inputs.length ? { inputs } : {}) };
}

export async function add(record) {
  if (shown.has(record.id)) return;
  show(record);
  await records.put(record).catch(() => toast("This browser does not let the page keep images. Download what you need.", { error: true }));
}

function show(record) {
  const url = URL.createObjectURL(record.blob);
  shown.set(record.id, { record, url });
  const text = record.settings.prompt || "no prompt";
  const image = el("img", { src: url, alt: text, loading: "lazy", width: record.settings.width, height: record.settings.height });
  const button = el("button", { type: "button", className: "thumb", title: text, onclick: () => view(record.id) }, image);
  $("gallery-grid").prepend(el("li", { id: `image-${record.id}` }, button));
  count();
}

function count() {
  $("gallery-empty").hidden = shown.size > 0;
  $("gallery-clear").hidden = shown.size === 0;
  $("gallery-count").textContent = shown.size ? String(shown.size) : "";
}

function hide(id) {
  $(`image-${id}`).remove();
  URL.revokeObjectURL(shown.get(id).url);
  shown.delete(id);
  count();
}

/** Open an image with its settings. */
export function view(id) {
  const { record, url } = shown.get(id);
  open = record;
  const { settings } = record;
  const values = {
    ...settings,
    size: `${settings.width} × ${settings.height}`,
    inputs: settings.inputs?.join(", "),
    loras: settings.loras?.map(({ name, weight }) => `${name} ${weight}`).join(", "),
  };
  $("viewer-img").src = url;
  $("viewer-img").alt = settings.prompt || "Generated image";
  const rows = Object.entries(NAMES).filter(([name]) => values[name] !== undefined && values[name] !== "");
  const times = [["Date", new Date(record.created).toLocaleString()], ...(record.report ? [["Report", record.report]] : [])];
  const items = [...rows.map(([name, title]) => [title, String(values[name])]), ...times];
  $("viewer-meta").replaceChildren(
    ...items.map(([title, text]) => el("div", { className: `meta-${title.toLowerCase().replace(" ", "-")}` }, el("dt", {}, title), el("dd", {}, text))),
  );
  Object.assign($("viewer-download"), { href: url, download: `calotype-${settings.seed ?? "image"}.png` });
  if (!$("viewer").open) $("viewer").showModal();
}

async function remove() {
  const record = open;
  $("viewer").close();
  hide(record.id);
  await records.remove(record.id);
  toast("Image deleted.", { action: "Undo", run: () => add(record) });
}

/** Show the next or the previous image. */
function step(by) {
  const ids = [...shown.keys()].reverse();
  const next = ids[ids.indexOf(open.id) + by];
  if (next) view(next);
}

/** Read the kept images. `handlers` has what the viewer's buttons do: reuse, useAsImage, code. */
export async function start(handlers) {
  actions = handlers;
  const then = (run) => () => ($("viewer").close(), run(open));
  $("viewer-reuse").onclick = then((record) => actions.reuse(record.settings));
  $("viewer-image").onclick = then((record) => actions.useAsImage(record.blob));
  $("viewer-code").onclick = () => actions.code(open.settings);
  $("viewer-delete").onclick = remove;
  $("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "Delete") remove();
  });
  $("gallery-clear").onclick = async () => {
    if (!confirm(`Delete all ${shown.size} images from this browser?`)) return;
    await records.clear();
    [...shown.keys()].forEach(hide);
  };
  const kept = await records.all().catch(() => []);
  for (const record of kept) if (!shown.has(record.id)) show(record);
  for (const button of document.querySelectorAll("form.close button")) setIcon(button, "close");
}
