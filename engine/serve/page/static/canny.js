// Canny's edges as OpenCV computes them (3 x 3 Sobel, |dx| + |dy|, the strongest channel), so that the preview is what
// `calotype.preprocess.canny` returns. Canny 1986.

const TG22 = 13573; // tan(22.5 degrees) x 2^15

/** Return the edges of RGBA pixels as white on black. Thresholds are of |dx| + |dy|, 0 to 2040. */
export function canny({ data, width, height }, low, high) {
  const { dx, dy, norm, row } = gradients(data, width, height);
  const edges = new Uint8Array(width * height); // 1: a candidate, 2: an edge
  const stack = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      const m = norm[(y + 1) * row + x + 1];
      if (m <= low || !isPeak(norm, (y + 1) * row + x + 1, row, dx[at], dy[at])) continue;
      edges[at] = m > high ? 2 : 1;
      if (m > high) stack.push(at);
    }
  }
  while (stack.length) spread(edges, stack, width, height);
  const result = new ImageData(width, height);
  for (let at = 0; at < edges.length; at++) {
    const value = edges[at] === 2 ? 255 : 0;
    result.data.set([value, value, value, 255], at * 4);
  }
  return result;
}

function gradients(data, width, height) {
  const row = width + 2; // the norm has a border of zeros
  const dx = new Int16Array(width * height);
  const dy = new Int16Array(width * height);
  const norm = new Int32Array(row * (height + 2));
  for (let y = 0; y < height; y++) {
    const up = Math.max(y - 1, 0) * width;
    const here = y * width;
    const down = Math.min(y + 1, height - 1) * width;
    for (let x = 0; x < width; x++) {
      const left = Math.max(x - 1, 0);
      const right = Math.min(x + 1, width - 1);
      for (let c = 0; c < 3; c++) {
        const p = (base, column) => data[(base + column) * 4 + c];
        const gx = p(up, right) + 2 * p(here, right) + p(down, right) - p(up, left) - 2 * p(here, left) - p(down, left);
        const gy = p(down, left) + 2 * p(down, x) + p(down, right) - p(up, left) - 2 * p(up, x) - p(up, right);
        const m = Math.abs(gx) + Math.abs(gy);
        const at = (y + 1) * row + x + 1;
        if (c && m <= norm[at]) continue;
        [norm[at], dx[here + x], dy[here + x]] = [m, gx, gy];
      }
    }
  }
  return { dx, dy, norm, row };
}

/** Whether a gradient is the largest along its direction. */
function isPeak(norm, at, row, gx, gy) {
  const m = norm[at];
  const x = Math.abs(gx) * TG22;
  const y = Math.abs(gy) * 32768;
  if (y < x) return m > norm[at - 1] && m >= norm[at + 1];
  if (y > x + Math.abs(gx) * 65536) return m > norm[at - row] && m >= norm[at + row];
  const s = (gx ^ gy) < 0 ? -1 : 1;
  return m > norm[at - row - s] && m > norm[at + row + s];
}

/** Turn the candidates around an edge into edges. */
function spread(edges, stack, width, height) {
  const at = stack.pop();
  const x = at % width;
  const y = (at - x) / width;
  for (let v = Math.max(y - 1, 0); v <= Math.min(y + 1, height - 1); v++) {
    for (let u = Math.max(x - 1, 0); u <= Math.min(x + 1, width - 1); u++) {
      if (edges[v * width + u] !== 1) continue;
      edges[v * width + u] = 2;
      stack.push(v * width + u);
    }
  }
}
