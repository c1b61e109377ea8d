// The settings in a PNG's text chunks: Calotype's own, and the `parameters` of AUTOMATIC1111's web UI.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const LONGEST = 1 << 20; // bytes of one chunk

/** Return the text chunks of a PNG by keyword; null if the file is not a PNG. */
export async function textChunks(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  const texts = {};
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (["tEXt", "iTXt", "zTXt"].includes(type) && length <= LONGEST) {
      const [keyword, text] = await textOf(type, data);
      texts[keyword] = text;
    }
    at += 12 + length;
  }
  return texts;
}

async function textOf(type, data) {
  const latin1 = new TextDecoder("latin1");
  const utf8 = new TextDecoder();
  const end = data.indexOf(0);
  const keyword = latin1.decode(data.subarray(0, end));
  if (type === "tEXt") return [keyword, latin1.decode(data.subarray(end + 1))];
  if (type === "zTXt") return [keyword, latin1.decode(await inflate(data.subarray(end + 2)))];
  const language = data.indexOf(0, end + 3);
  const start = data.indexOf(0, language + 1) + 1;
  const text = data.subarray(start);
  return [keyword, utf8.decode(data[end + 1] ? await inflate(text) : text)];
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return {settings, lost} of text chunks, with the names of a call's arguments; null if they have none. */
export function settingsOf(texts, schedulers) {
  if ("calotype" in texts) return ofCalotype(texts, schedulers);
  return texts.parameters === undefined ? null : ofWebUi(texts.parameters, schedulers);
}

const NUMBERS = ["steps", "guidance_scale", "width", "height", "strength", "padding_mask_crop"];
const IMAGES = { strength: "its input image", masked: "its mask", control_scales: "its control image" };

function ofCalotype(texts, schedulers) {
  const settings = { prompt: texts.prompt ?? "", negative_prompt: texts.negative_prompt ?? "", seed: texts.seed };
  for (const name of NUMBERS) if (name in texts) settings[name] = Number(texts[name]);
  if ("model" in texts) settings.model = texts.model;
  const lost = Object.keys(IMAGES).filter((name) => name in texts).map((name) => IMAGES[name]);
  const scheduler = parsed(texts.scheduler)?.name;
  settings.scheduler = schedulers.includes(scheduler) ? scheduler : null;
  settings.loras = (parsed(texts.loras) ?? []).map(([file, weight]) => ({ name: stem(file), weight }));
  return { settings, lost };
}

const parsed = (text) => {
  try {
    return JSON.parse(text.replaceAll(/-?Infinity|NaN/g, "null")); // as Python writes them
  } catch {
    return null;
  }
};
const stem = (file) => String(file).split(/[\\/]/).pop().replace(/\.safetensors$/, "");

const ITEM = /(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)/g;
const LORA = /<lora:([^<>:]{1,200})(?::([^<>:]{0,20}))?(?::[^<>]{0,100})?>/g;
const OTHER_NAMES = { dpm2: "kdpm2", dpm2a: "kdpm2a", plms: "pndm" };
const PLAIN = ["", "Automatic", "Uniform", "Normal"];
const KNOWN = ["Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Denoising strength"];
const SILENT = ["Version", "Model hash", "Hashes", "Lora hashes", "TI hashes", "VAE hash", "RNG"];

function ofWebUi(text, schedulers) {
  const lines = text.trim().split("\n");
  const items = Object.fromEntries([...lines.pop().matchAll(ITEM)].map(([, name, value]) => [name.trim(), unquoted(value.trim())]));
  if (!("Steps" in items)) return null;
  const [prompt, negative = ""] = `\n${lines.join("\n")}`.split("\nNegative prompt:");
  const loras = [...prompt.matchAll(LORA)].map(([, name, weight]) => ({ name, weight: Number(weight || 1) }));
  const settings = { prompt: prompt.replaceAll(LORA, "").trim(), negative_prompt: negative.trim(), loras, scheduler: null };
  const numbers = { Steps: "steps", "CFG scale": "guidance_scale", "Denoising strength": "strength" };
  for (const [key, name] of Object.entries(numbers)) if (key in items) settings[name] = Number(items[key]);
  const size = items.Size?.match(/^(\d+)x(\d+)$/);
  if (size) [settings.width, settings.height] = [Number(size[1]), Number(size[2])];
  if (/^\d+$/.test(items.Seed)) settings.seed = items.Seed;
  if (items.Model) settings.model = items.Model;
  const lost = Object.entries(items).filter(([name]) => ![...KNOWN, ...SILENT].includes(name)).map((item) => item.join(" "));
  if (items.Sampler) {
    const suffix = PLAIN.includes(items["Schedule type"] ?? "") ? "" : items["Schedule type"];
    const known = [items.Sampler + suffix, items.Sampler].map((name) => scheduler(name, schedulers)).find(Boolean);
    if (known) settings.scheduler = known;
    if (!known) lost.push(`the sampler ${items.Sampler}`);
    else if (suffix && known === scheduler(items.Sampler, schedulers)) lost.push(`the noise schedule ${suffix}`);
  }
  return { settings, lost };
}

const bare = (name) => name.toLowerCase().replaceAll(/[\s_-]/g, "");

/** Return the scheduler of another program's sampler name, as "DPM++ 2M Karras"; null without one. */
function scheduler(name, schedulers) {
  const sought = bare(name).replace(/^(dpm2a|dpm2|plms)/, (other) => OTHER_NAMES[other]);
  return schedulers.find((each) => bare(each) === sought) ?? null;
}

const unquoted = (value) => (value.startsWith('"') ? (parsed(value) ?? value) : value);
