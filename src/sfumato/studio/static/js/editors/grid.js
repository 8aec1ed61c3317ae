// Whole numbers on pixels: a mask (0, 1) or a label map (class ids). Hard edges, bounded undo.

const MOST_UNDO_BYTES = 64e6;

export function makeGrid(width, height, value = 0) {
  return { width, height, cells: new Uint8Array(width * height).fill(value), past: [], future: [] };
}

export function snapshot(grid) {
  grid.past.push(grid.cells.slice());
  grid.future = [];
  while (grid.past.length > 1 && grid.past.length * grid.cells.length > MOST_UNDO_BYTES) grid.past.shift();
}

function step(grid, from, to) {
  if (!from.length) return false;
  to.push(grid.cells.slice());
  grid.cells = from.pop();
  return true;
}

export const undo = (grid) => step(grid, grid.past, grid.future);
export const redo = (grid) => step(grid, grid.future, grid.past);

// A disc of this diameter in pixels around (x, y); diameter 1 is the one pixel.
export function disc(grid, x, y, diameter, value) {
  const radius = diameter / 2;
  const left = Math.max(0, Math.floor(x - radius)), right = Math.min(grid.width - 1, Math.ceil(x + radius));
  const top = Math.max(0, Math.floor(y - radius)), bottom = Math.min(grid.height - 1, Math.ceil(y + radius));
  if (diameter <= 1) {
    const column = Math.floor(x), row = Math.floor(y);
    if (column >= 0 && row >= 0 && column < grid.width && row < grid.height) grid.cells[row * grid.width + column] = value;
    return;
  }
  for (let row = top; row <= bottom; row += 1) {
    for (let column = left; column <= right; column += 1) {
      if (Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) grid.cells[row * grid.width + column] = value;
    }
  }
}

export function line(grid, from, to, diameter, value) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(0.5, diameter / 4)));
  for (let i = 0; i <= steps; i += 1) {
    disc(grid, from.x + ((to.x - from.x) * i) / steps, from.y + ((to.y - from.y) * i) / steps, diameter, value);
  }
}

// The connected area of one value around (x, y), four neighbours.
export function fill(grid, x, y, value) {
  const column = Math.floor(x), row = Math.floor(y);
  if (column < 0 || row < 0 || column >= grid.width || row >= grid.height) return;
  const first = row * grid.width + column;
  const old = grid.cells[first];
  if (old === value) return;
  const queue = [first];
  grid.cells[first] = value;
  while (queue.length) {
    const at = queue.pop();
    const place = at % grid.width;
    const next = [at - grid.width, at + grid.width, place > 0 ? at - 1 : -1, place < grid.width - 1 ? at + 1 : -1];
    for (const each of next) {
      if (each >= 0 && each < grid.cells.length && grid.cells[each] === old) {
        grid.cells[each] = value;
        queue.push(each);
      }
    }
  }
}

export function invert(grid) {
  for (let i = 0; i < grid.cells.length; i += 1) grid.cells[i] = grid.cells[i] ? 0 : 1;
}

export const any = (grid) => grid.cells.some((each) => each > 0);

// The share of new pixels in a hole: 1 / (feather + 1) at its edge, rising inwards; the hole goes on beyond the border.
export function feathered(grid, feather) {
  const { width, height, cells } = grid;
  const far = feather + 1;
  const distance = new Uint16Array(cells.length);
  for (let i = 0; i < cells.length; i += 1) distance[i] = cells[i] ? far : 0;
  const relax = (i, column, row, steps) => {
    for (const [dx, dy] of steps) {
      const x = column + dx, y = row + dy;
      if (x < 0 || y < 0 || x >= width || y >= height) continue;
      distance[i] = Math.min(distance[i], distance[y * width + x] + 1);
    }
  };
  const before = [[-1, 0], [-1, -1], [0, -1], [1, -1]];
  const after = [[1, 0], [1, 1], [0, 1], [-1, 1]];
  for (let row = 0; row < height; row += 1) for (let column = 0; column < width; column += 1) relax(row * width + column, column, row, before);
  for (let row = height - 1; row >= 0; row -= 1) for (let column = width - 1; column >= 0; column -= 1) relax(row * width + column, column, row, after);
  return Float32Array.from(distance, (each) => each / far);
}

// A PNG whose grey values are `shade(value)`.
export function toBlob(grid, shade) {
  const canvas = document.createElement("canvas");
  canvas.width = grid.width;
  canvas.height = grid.height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(grid.width, grid.height);
  for (let i = 0; i < grid.cells.length; i += 1) {
    const grey = shade(grid.cells[i]);
    pixels.data.set([grey, grey, grey, 255], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
