// The mask editor: an image with strokes over it. What is painted is repainted by the model.
import { el } from "./dom.js";

const LONGEST = 2048; // pixels of the longer side of what is sent

export class MaskEditor {
  constructor(place, onChange) {
    this.photo = el("canvas", { "aria-hidden": "true" });
    this.mask = el("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "mask editor" });
    this.mask.setAttribute("aria-label", "Mask: draw with the pointer, or move with the arrow keys and paint with the space bar");
    this.cursor = el("div", { className: "cursor", hidden: true });
    place.append(this.photo, this.mask, this.cursor);
    this.onChange = onChange;
    this.strokes = [];
    this.erasing = false;
    this.percent = 12; // of the longer side
    this.listen();
  }

  get isEmpty() {
    const last = this.strokes.findLastIndex((stroke) => stroke.clear);
    return !this.strokes.slice(last + 1).some((stroke) => stroke.invert || !stroke.erase);
  }

  /** Show an image, without a mask. */
  show(bitmap) {
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    for (const canvas of [this.photo, this.mask]) {
      canvas.width = Math.round(bitmap.width * scale);
      canvas.height = Math.round(bitmap.height * scale);
    }
    this.photo.getContext("2d").drawImage(bitmap, 0, 0, this.photo.width, this.photo.height);
    this.at = { x: this.mask.width / 2, y: this.mask.height / 2 };
    this.strokes = [];
    this.redraw();
  }

  /** The image as a data URL. */
  image = () => this.photo.toDataURL("image/png");

  /** The mask as a data URL, white where the model repaints; null if nothing is painted. */
  maskUrl() {
    if (this.isEmpty) return null;
    const { width, height } = this.mask;
    const pixels = this.mask.getContext("2d").getImageData(0, 0, width, height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      const value = pixels.data[at + 3] > 127 ? 255 : 0;
      pixels.data.set([value, value, value, 255], at);
    }
    const canvas = el("canvas", { width, height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.toDataURL("image/png");
  }

  undo() {
    this.strokes.pop();
    this.redraw();
  }

  /** Add something to the mask that can be undone: {clear: true} or {invert: true}. */
  add(stroke) {
    this.strokes.push(stroke);
    this.redraw();
  }

  redraw() {
    const context = this.mask.getContext("2d");
    context.clearRect(0, 0, this.mask.width, this.mask.height);
    for (const stroke of this.strokes) this.draw(context, stroke);
    this.onChange();
  }

  draw(context, { points = [], width = 1, erase = false, clear = false, invert = false }) {
    const color = getComputedStyle(this.mask).color;
    if (clear) context.clearRect(0, 0, this.mask.width, this.mask.height);
    context.globalCompositeOperation = invert ? "source-out" : erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = color;
    if (invert) context.fillRect(0, 0, this.mask.width, this.mask.height);
    if (clear || invert) return;
    context.lineWidth = width;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    points.forEach(({ x, y }, i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (points.length === 1) context.lineTo(points[0].x, points[0].y + 0.01);
    context.stroke();
  }

  get brush() {
    return (Math.max(this.mask.width, this.mask.height) * this.percent) / 100;
  }

  begin() {
    this.strokes.push({ points: [this.at], width: this.brush, erase: this.erasing });
    this.redraw();
  }

  extend() {
    this.strokes.at(-1).points.push(this.at);
    this.redraw();
  }

  listen() {
    const { mask } = this;
    const move = (event) => {
      const box = mask.getBoundingClientRect();
      this.at = { x: ((event.clientX - box.left) * mask.width) / box.width, y: ((event.clientY - box.top) * mask.height) / box.height };
      this.place();
    };
    mask.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      mask.focus({ preventScroll: true });
      mask.setPointerCapture(event.pointerId);
      move(event);
      this.begin();
    });
    mask.addEventListener("pointermove", (event) => {
      move(event);
      if (mask.hasPointerCapture(event.pointerId)) this.extend();
    });
    mask.addEventListener("pointerleave", () => (this.cursor.hidden = document.activeElement !== mask));
    mask.addEventListener("focus", () => this.place());
    mask.addEventListener("blur", () => (this.cursor.hidden = true));
    mask.addEventListener("keydown", (event) => this.press(event));
    mask.addEventListener("keyup", (event) => event.key === " " && (this.painting = false));
  }

  press(event) {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (by) {
      const stride = Math.max(1, this.brush / 4);
      const within = (value, most) => Math.min(Math.max(value, 0), most);
      this.at = { x: within(this.at.x + by[0] * stride, this.mask.width), y: within(this.at.y + by[1] * stride, this.mask.height) };
      this.place();
      if (this.painting) this.extend();
    } else if (event.key === " ") {
      if (!event.repeat) this.begin();
      this.painting = true;
    } else return;
    event.preventDefault();
  }

  /** Draw the ring of the brush at its place. */
  place() {
    const scale = this.mask.clientWidth / this.mask.width;
    const size = this.brush * scale;
    Object.assign(this.cursor.style, {
      width: `${size}px`,
      height: `${size}px`,
      left: `${this.mask.offsetLeft + this.at.x * scale - size / 2}px`,
      top: `${this.mask.offsetTop + this.at.y * scale - size / 2}px`,
    });
    this.cursor.hidden = false;
  }
}
