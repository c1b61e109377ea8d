// The form: its fields, the limits of the chosen model, and its way to and from the body of a job.
import { $, el, setIcon, store, stored, toast } from "./dom.js";
import { canny } from "./canny.js";
import { MaskEditor } from "./mask.js";

const SLIDERS = ["steps", "guidance_scale", "width", "height", "num_images", "strength", "canny_low", "canny_high", "control_scale"];
const SCHEDULES = { "": "Default", karras: "Karras", exponential: "Exponential", beta: "Beta" };
const KEPT = ["prompt", "negative_prompt", "seed"];

const lastVisit = stored("form", null); // read before the first change of a field replaces it
let options = { models: [], loras: [], schedulers: [], limits: {} };
let loras = []; // {name, weight}
let image = null; // whether there is an input image
let control = null; // an ImageBitmap

export const mask = new MaskEditor($("canvas"), () => {
  $("undo").disabled = !mask.strokes.length;
  $("clear").disabled = mask.isEmpty;
  $("only_masked").disabled = mask.isEmpty;
  $("mask-hint").hidden = !mask.isEmpty;
});
export const schedulers = () => options.schedulers;
export const model = () => options.models.find((each) => each.name === $("model").value) ?? options.models[0];
const number = (name) => Number($(name).value);

/** Give each slider a number next to it, in which larger values can be typed. */
function pairSliders() {
  for (const name of SLIDERS) {
    const range = $(name);
    const label = document.querySelector(`label[for=${name}]`).textContent;
    const box = el("input", { type: "number", id: `${name}-number`, min: range.min, max: range.max, step: range.step || 1 });
    box.setAttribute("aria-label", `${label}, as a number`);
    range.after(box);
    range.addEventListener("input", () => (fill(range), (box.value = range.value)));
    box.addEventListener("input", () => ((range.value = box.value), fill(range)));
    box.addEventListener("change", () => setSlider(name, box.value || range.value));
    box.value = range.value;
    fill(range);
  }
}

/** Color the part of a slider below its value. */
function fill(range) {
  const share = (range.value - range.min) / (range.max - range.min || 1);
  range.style.setProperty("--fill", `${100 * share}%`);
}

/** Set a slider to the nearest value that it takes. */
export function setSlider(name, value) {
  $(name).value = value;
  $(`${name}-number`).value = $(name).value;
  fill($(name));
  $(name).dispatchEvent(new Event("change", { bubbles: true }));
}

function limit(name, { min, max, step }) {
  for (const id of [name, `${name}-number`]) Object.assign($(id), { min, max, ...(step ? { step } : {}) });
  setSlider(name, $(name).value);
}

/** Take the server's options: models, LoRAs, samplers and limits. */
export function setOptions(received) {
  options = received;
  const chosen = $("model").value || lastVisit?.model;
  $("model").replaceChildren(...options.models.map(({ name }) => new Option(name, name, false, name === chosen)));
  const bases = options.schedulers.filter((name) => !/-(karras|exponential|beta)$/.test(name));
  $("sampler").replaceChildren(new Option("Model default", ""), ...bases.map((name) => new Option(name, name)));
  $("lora-group").hidden = !options.loras.length;
  $("lora-add").replaceChildren(new Option("Add a LoRA…", ""), ...options.loras.map((name) => new Option(name, name)));
  limit("steps", { min: 1, max: Math.min(options.limits.steps, 150) });
  fillSchedules();
  takeModel();
}

function fillSchedules() {
  const sampler = $("sampler").value;
  const before = $("schedule").value;
  const names = Object.keys(SCHEDULES).filter((suffix) => !suffix || options.schedulers.includes(`${sampler}-${suffix}`));
  $("schedule").replaceChildren(...names.map((suffix) => new Option(SCHEDULES[suffix], suffix, false, suffix === before)));
  $("schedule").disabled = names.length < 2;
}

/** Set the limits of the form to those of the chosen model. Sizes are known once the server has loaded it. */
function takeModel() {
  const { name, loaded, sizes, controlnets } = model();
  for (const side of ["width", "height"]) {
    for (const id of [side, `${side}-number`]) $(id).disabled = !loaded;
    if (!loaded) continue;
    limit(side, { min: sizes[`min_${side}`], max: largest(side), step: sizes.multiple });
    if ($(side).dataset.model !== name) setSlider(side, sizes[side]);
    $(side).dataset.model = name;
  }
  limit("num_images", { min: 1, max: options.limits.images });
  $("control-group").hidden = !controlnets;
}

const largest = (side) => Math.min(model().sizes?.[`max_${side}`] ?? Infinity, options.limits.side);

function renderLoras() {
  const rows = loras.map((lora, i) => {
    const weight = el("input", { type: "number", min: -10, max: 10, step: 0.05, value: lora.weight, oninput: (event) => (lora.weight = Number(event.target.value)) });
    weight.setAttribute("aria-label", `Weight of ${lora.name}`);
    const remove = el("button", { type: "button", className: "quiet icon", "aria-label": `Remove ${lora.name}`, onclick: () => (loras.splice(i, 1), renderLoras()) });
    setIcon(remove, "close");
    return el("li", {}, el("span", { className: "name", title: lora.name }, lora.name), weight, remove);
  });
  $("loras").replaceChildren(...rows);
}

/** Return the body of a job. Throws an Error with a message for the reader if a field is invalid. */
export function read() {
  const seed = $("seed").value.trim();
  if (seed && (!/^\d+$/.test(seed) || BigInt(seed) >= 1n << 64n)) {
    $("seed").focus();
    throw new Error(`The seed is ${seed}. Use a whole number from 0 to 18446744073709551615, or leave it empty.`);
  }
  const scheduler = [$("sampler").value, $("schedule").value].filter(Boolean).join("-");
  const every = stored("previews", "auto");
  const body = {
    ...(model().takes_text === false ? {} : { prompt: $("prompt").value }), // an unconditional model takes none
    ...($("negative_prompt").value.trim() ? { negative_prompt: $("negative_prompt").value } : {}),
    model: model().name,
    steps: number("steps"),
    guidance_scale: number("guidance_scale"),
    ...(model().loaded ? { width: number("width"), height: number("height") } : {}),
    num_images: number("num_images"),
    ...(scheduler ? { scheduler } : {}),
    ...(seed ? { seed: Number.isSafeInteger(Number(seed)) ? Number(seed) : seed } : {}),
    ...(loras.length ? { loras: loras.map((lora) => ({ ...lora })) } : {}),
    preview_every: every === "auto" ? Math.ceil(number("steps") / 10) : Number(every),
  };
  if (image) {
    Object.assign(body, { image: mask.image(), strength: number("strength") });
    const url = mask.maskUrl();
    if (url) Object.assign(body, { mask_image: url, ...($("only_masked").checked ? { padding_mask_crop: 32 } : {}) });
  }
  if (control && !$("control-group").hidden) {
    Object.assign(body, { control_image: $("control-canvas").toDataURL("image/png"), controlnet_conditioning_scale: number("control_scale") });
  }
  return body;
}

/** Fill the form with settings, which may lack some. Returns what the server does not have. */
export function apply(settings) {
  const lost = [];
  if (settings.model !== undefined && settings.model !== model()?.name) {
    if (options.models.some(({ name }) => name === settings.model)) {
      $("model").value = settings.model;
      takeModel();
    } else lost.push(`the model ${settings.model}`);
  }
  $("prompt").value = settings.prompt ?? "";
  $("negative_prompt").value = settings.negative_prompt ?? "";
  $("seed").value = settings.seed ?? "";
  const [, base, suffix] = (settings.scheduler ?? "").match(/^(.*?)(?:-(karras|exponential|beta))?$/);
  $("sampler").value = base;
  fillSchedules();
  $("schedule").value = suffix ?? "";
  for (const name of SLIDERS) {
    if (settings[name] === undefined) continue;
    setSlider(name, settings[name]);
    if (number(name) !== Number(settings[name])) lost.push(`${name} ${settings[name]}`);
  }
  const known = (settings.loras ?? []).filter(({ name }) => options.loras.includes(name));
  lost.push(...(settings.loras ?? []).filter((lora) => !known.includes(lora)).map(({ name }) => `the LoRA ${name}`));
  loras = known.map(({ name, weight }) => ({ name, weight }));
  renderLoras();
  $("lora-group").open ||= loras.length > 0;
  grow();
  return lost;
}

/** Keep the form for the next visit. */
export function keep() {
  const values = Object.fromEntries([...KEPT, ...SLIDERS].map((name) => [name, $(name).value]));
  store("form", { ...values, model: $("model").value, scheduler: [$("sampler").value, $("schedule").value].filter(Boolean).join("-"), loras });
}
export const restore = () => lastVisit && apply(lastVisit);

const bitmapOf = async (blob) => {
  try {
    return await createImageBitmap(blob);
  } catch {
    throw new Error("This file is not an image that the browser can read.");
  }
};

/** Use an image as the input, at its size as far as the model takes it. */
export async function setImage(blob) {
  const bitmap = await bitmapOf(blob);
  image = true;
  $("image-group").open = true;
  $("image-drop").hidden = true;
  $("image-editor").hidden = false;
  mask.show(bitmap);
  const scale = Math.min(1, largest("width") / bitmap.width, largest("height") / bitmap.height);
  setSlider("width", bitmap.width * scale);
  setSlider("height", bitmap.height * scale);
}

export function removeImage() {
  image = null;
  $("image-drop").hidden = false;
  $("image-editor").hidden = true;
}

/** Use an image for the ControlNet. */
export async function setControl(blob) {
  control = await bitmapOf(blob);
  $("control-group").open = true;
  $("control-drop").hidden = true;
  $("control-editor").hidden = false;
  drawControl();
}

function removeControl() {
  control = null;
  $("control-drop").hidden = false;
  $("control-editor").hidden = true;
}

/** Draw the control image at the size of the output, as edges if these are chosen. */
function drawControl() {
  if (!control) return;
  const canvas = $("control-canvas");
  [canvas.width, canvas.height] = [number("width"), number("height")];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(control, 0, 0, canvas.width, canvas.height);
  $("canny-thresholds").hidden = !$("canny").checked;
  if (!$("canny").checked) return;
  const [low, high] = [number("canny_low"), number("canny_high")].sort((a, b) => a - b);
  context.putImageData(canny(context.getImageData(0, 0, canvas.width, canvas.height), low, high), 0, 0);
}

/** Let a text box grow with its text. */
function grow() {
  for (const area of document.querySelectorAll("textarea")) {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, 320)}px`;
  }
}

/** Let a place take a dropped image. */
function takesDrops(place, take) {
  place.addEventListener("dragover", (event) => (event.preventDefault(), place.classList.add("over")));
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    document.dispatchEvent(new Event("dropped"));
    place.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]).catch(complain);
  });
}
const complain = (failure) => toast(failure.message, { error: true });

function chooses(button, input, take) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    const [file] = $(input).files;
    $(input).value = "";
    if (file) take(file).catch(complain);
  });
}

function setTool(erasing) {
  mask.erasing = erasing;
  $("brush").setAttribute("aria-pressed", String(!erasing));
  $("erase").setAttribute("aria-pressed", String(erasing));
}

/** Set the size of the brush, in percent of the longer side. */
function setBrush(percent) {
  $("brush-size").value = percent;
  fill($("brush-size"));
  mask.percent = Number($("brush-size").value);
  mask.place();
}

function listenToEditor() {
  $("brush").onclick = () => setTool(false);
  $("erase").onclick = () => setTool(true);
  $("undo").onclick = () => mask.undo();
  $("invert").onclick = () => mask.add({ invert: true });
  $("clear").onclick = () => mask.add({ clear: true });
  $("brush-size").oninput = (event) => setBrush(event.target.value);
  $("image-remove").onclick = removeImage;
  $("enlarge").onclick = () => {
    $("large-place").append($("editor"));
    $("enlarge").hidden = true;
    $("large-editor").showModal();
  };
  $("large-editor").onclose = () => {
    $("image-editor").prepend($("editor"));
    $("enlarge").hidden = false;
  };
  $("editor").addEventListener("keydown", (event) => {
    const keys = { "[": () => setBrush(mask.percent - 2), "]": () => setBrush(mask.percent + 2), b: () => setTool(false), e: () => setTool(true) };
    if ((event.ctrlKey || event.metaKey) && event.key === "z") mask.undo();
    else if (keys[event.key] && !event.ctrlKey) keys[event.key]();
    else return;
    event.preventDefault();
  });
}

/** Wire the form. `submit` takes the body of a job. */
export function start() {
  pairSliders();
  const icons = { "seed-random": "dice", "seed-last": "again", brush: "brush", erase: "erase", undo: "undo", invert: "invert" };
  Object.assign(icons, { clear: "trash", enlarge: "enlarge", "image-remove": "close", "control-remove": "close", "copy-as": "code", "open-png": "png" });
  for (const [id, name] of Object.entries(icons)) setIcon($(id), name);
  $("sampler").onchange = fillSchedules;
  $("model").onchange = takeModel;
  $("seed-random").onclick = () => ($("seed").value = "");
  $("seed-last").onclick = () => ($("seed").value = stored("last-seed", ""));
  $("lora-add").onchange = (event) => {
    const name = event.target.value;
    if (name && !loras.some((lora) => lora.name === name)) loras.push({ name, weight: 1 });
    event.target.value = "";
    renderLoras();
  };
  chooses("image-choose", "image-file", setImage);
  chooses("control-choose", "control-file", setControl);
  takesDrops($("image-group"), setImage);
  takesDrops($("control-group"), setControl);
  $("control-remove").onclick = removeControl;
  for (const name of ["canny", "canny_low", "canny_high", "width", "height"]) $(name).addEventListener("change", drawControl);
  for (const name of ["canny_low", "canny_high"]) $(name).addEventListener("input", drawControl);
  for (const area of document.querySelectorAll("textarea")) area.addEventListener("input", grow);
  listenToEditor();
  for (const kind of ["input", "change"]) $("form").addEventListener(kind, keep);
}
