// Jobs of this page: submits them, follows their events, and shows the queue, the previews and the results.
import { blob, events, request } from "./api.js";
import { $, announce, el, store, stored, toast } from "./dom.js";
import * as gallery from "./gallery.js";

const FINAL = ["done", "failed", "cancelled"];
const RETRIES = 5; // of a lost connection, before the page gives up
const jobs = new Map(); // id -> {id, body, status, row}
let inView = null; // the id of the job on the stage

/** Submit a job and follow it. */
export async function submit(body) {
  const status = await request("jobs", { method: "POST", body });
  const kept = gallery.withoutImages(body);
  store("pending", [...stored("pending", []), { id: status.id, body: kept }]);
  follow(status.id, kept, status);
}

/** Cancel a job: the one that runs, if no id names another. */
export async function cancel(id = running()?.id) {
  if (!id) return;
  await request(`jobs/${encodeURIComponent(id)}`, { method: "DELETE" }).catch((failure) => {
    if (failure.status !== 404 && failure.status !== 410) toast(failure.message, { error: true });
  });
}

const active = () => [...jobs.values()].filter(({ status }) => !FINAL.includes(status.state));
const running = () => active().find(({ status }) => status.state === "running") ?? active()[0];

/** Follow the jobs that this browser submitted before it reloaded. */
export function resume() {
  const unknown = stored("pending", []).filter(({ id }) => !jobs.has(id));
  for (const { id, body } of unknown) follow(id, body, { id, state: "waiting", place: 0, step: 0, total: 0 });
}

function forget(id) {
  store("pending", stored("pending", []).filter((each) => each.id !== id));
  jobs.get(id)?.row.remove();
  jobs.delete(id);
  renderQueue();
}

async function follow(id, body, status) {
  const row = queueRow(id, body);
  jobs.set(id, { id, body, status, row });
  $("queue-list").append(row);
  take(id, status);
  for (let failures = 0; jobs.has(id); ) {
    try {
      for await (const { data } of events(`jobs/${encodeURIComponent(id)}/events`)) {
        failures = 0;
        take(id, { ...jobs.get(id).status, ...data });
        if (FINAL.includes(data.state)) return await finish(id);
      }
    } catch (failure) {
      if (failure.status >= 400 || ++failures > RETRIES) return lose(id, failure);
      await new Promise((resume) => setTimeout(resume, 500 * 2 ** failures));
    }
  }
}

function lose(id, failure) {
  const gone = failure.status === 404 || failure.status === 410;
  toast(gone ? "The server no longer knows a job of this page." : failure.message, { error: true });
  forget(id);
  rest();
}

/** Show a new status of a job. */
function take(id, status) {
  const job = jobs.get(id);
  const before = job.status;
  job.status = status;
  if (status.state === "running" && !jobs.has(inView)) inView = id;
  if (running()?.id === id) inView = id;
  renderQueue();
  if (inView === id) renderStage(job);
  if (status.state === "running" && before.state !== "running") announce("The job runs.");
  const quarter = (step) => Math.floor((4 * step) / (status.total || 1));
  if (status.total && quarter(status.step) !== quarter(before.step ?? 0)) announce(`Step ${status.step} of ${status.total}.`);
}

async function finish(id) {
  const { body, status } = jobs.get(id);
  try {
    if (status.state === "done") await collect(id, body, status);
    if (status.state === "failed") {
      toast(status.error?.message ?? "The job failed.", { error: true });
      announce("The job failed.");
    }
    if (status.state === "cancelled") announce("The job is cancelled.");
    if (status.state !== "done" && inView === id) $("view").replaceChildren(hint(status.state === "failed" ? "The job failed." : "Cancelled."));
  } catch (failure) {
    toast(`The images of a job could not be fetched: ${failure.message}`, { error: true });
  }
  forget(id);
  rest();
  document.dispatchEvent(new Event("finished"));
}

/** Fetch a job's images into the gallery, and show them. */
async function collect(id, body, { images, report }) {
  const records = await Promise.all(images.map(async ({ name, seed, width, height }, i) => {
    const settings = { ...body, width: width ?? body.width, height: height ?? body.height, seed: String(seed), num_images: 1 };
    return { id: `${id}.${i}`, created: Date.now() + i, blob: await blob(`files/${name}`), settings, report };
  }));
  for (const record of records) await gallery.add(record);
  store("last-seed", records[0].settings.seed);
  if (inView === id) showResults(records);
  announce(`${records.length === 1 ? "The image is" : `${records.length} images are`} ready.`);
}

function showResults(records) {
  const figures = records.map((record) => {
    const image = el("img", { src: URL.createObjectURL(record.blob), alt: record.settings.prompt || "Generated image" });
    image.onload = () => URL.revokeObjectURL(image.src);
    return el("button", { type: "button", className: "result", title: "Open", onclick: () => gallery.view(record.id) }, image);
  });
  $("view").replaceChildren(...figures);
  $("view").dataset.count = Math.min(figures.length, 4);
}

export const hint = (text, ...more) => el("p", { className: "hint" }, text, ...more);

/** Without a running job: nothing to cancel, no progress. */
function rest() {
  const next = running();
  if (next) {
    inView = next.id;
    renderStage(next);
    return;
  }
  inView = null;
  $("progress").hidden = true;
  $("cancel").disabled = true;
  $("stage").removeAttribute("aria-busy");
}

function renderStage({ status, body }) {
  const { state, place, step, total, eta_s: eta, preview } = status;
  $("progress").hidden = false;
  $("cancel").disabled = false;
  $("stage").setAttribute("aria-busy", "true");
  $("progress-bar").max = total || body.steps;
  $("progress-bar").value = step ?? 0;
  $("progress-text").textContent = state === "waiting" ? placeText(place) : total ? `Step ${step} of ${total}` : "Starts";
  $("progress-eta").textContent = state === "running" && eta ? ` · ${duration(eta)} left` : "";
  if (!preview) {
    if (step <= 1 && !$("view").querySelector(".preview")) $("view").replaceChildren(hint(state === "waiting" ? "Waits for its turn." : "The first preview is on its way."));
    return;
  }
  const image = $("view").querySelector(".preview") ?? el("img", { className: "preview", alt: "Preview of the image that is generated" });
  image.src = preview;
  if (body.width) Object.assign(image, { width: body.width, height: body.height });
  image.dataset.step = status.preview_step;
  if (!image.parentNode) $("view").replaceChildren(image);
  $("view").dataset.count = 1;
}

const placeText = (place) => (place ? `${place} ${place === 1 ? "job" : "jobs"} before it` : "Next");
const duration = (seconds) => (seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`);

function queueRow(id, body) {
  const cancels = el("button", { type: "button", className: "quiet small", onclick: () => cancel(id) }, "Cancel");
  cancels.setAttribute("aria-label", `Cancel: ${(body.prompt || "no prompt").slice(0, 60)}`);
  return el("li", {}, el("span", { className: "place" }), el("span", { className: "text" }, body.prompt || "no prompt"), el("span", { className: "state muted" }), cancels);
}

function renderQueue() {
  const waiting = active();
  $("queue").hidden = waiting.length === 0;
  for (const { status, row } of jobs.values()) {
    row.classList.toggle("running", status.state === "running");
    row.querySelector(".place").textContent = status.state === "running" ? "▸" : String(status.place || "·");
    row.querySelector(".state").textContent = status.state === "running" ? `${status.step ?? 0} / ${status.total || "…"}` : placeText(status.place);
  }
}
