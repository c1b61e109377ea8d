// The settings as a program: curl, Python or the command line. Images appear as the names of files.

import { print } from "./api.js";

const FILES = { image: "image.png", mask_image: "mask.png", control_image: "control.png" };

/** Return {curl, python, cli} for the body of a job. */
export function programs(body, hasKey) {
  return { curl: curl(body, hasKey), python: python(body), cli: cli(body) };
}

const shell = (text) => (/^[\w.,:/+-]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`);
const own = ({ model, loras, preview_every, ...call }) => call;

function curl(body, hasKey) {
  const { preview_every, ...sent } = body;
  const images = Object.keys(FILES).filter((name) => name in sent);
  const lines = [`curl -s ${location.origin}/jobs`, "-H 'Content-Type: application/json'"];
  if (hasKey) lines.push('-H "Authorization: Bearer $CALOTYPE_KEY"');
  const json = print({ ...sent, ...Object.fromEntries(images.map((name) => [name, `\u0001${FILES[name]}\u0002`])) });
  const follow = `curl -sN ${location.origin}/jobs/$id/events${hasKey ? ' -H "Authorization: Bearer $CALOTYPE_KEY"' : ""}`;
  const id = "| python3 -c 'import json, sys; print(json.load(sys.stdin)[\"id\"])')";
  if (!images.length) return `id=$(${[...lines, `-d ${shell(json)}`].join(" \\\n  ")} \\\n  ${id}\n${follow}`;
  const text = json.replaceAll(/[\\$`]/g, "\\$&").replaceAll("\\\\u0001", "$(base64 -w0 ").replaceAll("\\\\u0002", ")");
  return `cat > job.json <<JSON\n${text}\nJSON\nid=$(${[...lines, "-d @job.json"].join(" \\\n  ")} \\\n  ${id}\n${follow}`;
}

const literal = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));

function python(body) {
  const { prompt, num_images: count = 1, ...call } = own(body);
  const load = [literal(body.model)];
  if (body.loras?.length) load.push(`lora=[${body.loras.map(({ name, weight }) => `(${literal(`${name}.safetensors`)}, ${weight})`).join(", ")}]`);
  if ("control_image" in body) load.push('controlnet="CONTROLNET"');
  const values = { ...call, ...(count > 1 ? { num_images: count } : {}) };
  const lines = Object.entries(values).map(([name, value]) => `    ${name}=${name in FILES ? literal(FILES[name]) : name === "seed" ? value : literal(value)},`);
  return [
    "import calotype",
    "",
    `pipe = calotype.load(${load.join(", ")})`,
    "result = pipe(",
    ...(prompt === undefined ? [] : [`    ${literal(prompt)},`]),
    ...lines,
    ")",
    "for i, image in enumerate(result.images):",
    '    image.save(f"image-{i}.png")',
  ].join("\n");
}

function cli(body) {
  const { prompt, ...call } = own(body);
  const options = { model: body.model, ...call };
  const words = Object.entries(options).map(([name, value]) => {
    const option = `--${name.replaceAll("_", "-")}`;
    if (value === true) return option;
    return `${option} ${shell(name in FILES ? FILES[name] : String(value))}`;
  });
  for (const { name, weight } of body.loras ?? []) words.push(`--lora ${shell(`${name}.safetensors:${weight}`)}`);
  if ("control_image" in body) words.push("--controlnet CONTROLNET");
  const last = prompt === undefined ? [] : [prompt.startsWith("-") ? `-- ${shell(prompt)}` : shell(prompt)];
  return ["calotype generate", ...words, "-o image.png", ...last].join(" \\\n  ");
}
