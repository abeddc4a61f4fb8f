// Shows one slice on a canvas: window, zoom, pan, and a heat map over it.

const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66],
  [245, 125, 21], [250, 193, 39], [252, 255, 164]];  // of matplotlib, at equal steps
const MAX_ZOOM = 16;
const TURN = 60;  // of the wheel, for a slice; px

function colour(value) {
  const place = (value / 255) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(place), INFERNO.length - 2);
  return INFERNO[low].map((from, i) => from + (place - low) * (INFERNO[low + 1][i] - from));
}
const COLOURS = Array.from({ length: 256 }, (_, value) => colour(value));

// Returns the grey values of a PNG, one byte a pixel.
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const grey = new Uint8Array(data.length / 4);
  for (let i = 0; i < grey.length; i++) grey[i] = data[4 * i];
  return { grey, width: bitmap.width, height: bitmap.height };
}

export class Viewer {
  constructor(canvas, onWindow, onStep) {
    Object.assign(this, { canvas, onWindow, onStep, slice: null, map: null });
    Object.assign(this, { opacity: 0.6, turned: 0 });
    this.reset();
    this.pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  reset() {
    Object.assign(this, { level: 128, span: 255, zoom: 1, x: 0, y: 0 });
    this.onWindow(this.level, this.span);
    this.draw();
  }

  show(slice) {
    Object.assign(this, { slice, map: null });
    this.draw();
  }

  setMap(map) {
    this.map = map;
    this.draw();
  }

  setWindow(level, span) {
    this.level = Math.min(255, Math.max(0, level));
    this.span = Math.min(510, Math.max(1, span));
    this.onWindow(this.level, this.span);
    this.draw();
  }

  setZoom(zoom) {
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, zoom));
    if (this.zoom === 1) this.x = this.y = 0;
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (this.pointers.size === 2) {
      const other = [...this.pointers.values()].find((each) => each.pointerId !== event.pointerId);
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
      this.pan(dx / 2, dy / 2);
      this.setZoom((this.zoom * apart(event)) / Math.max(1, apart(before)));
    } else if (event.shiftKey || event.buttons === 4) {
      this.pan(dx, dy);
    } else {
      this.setWindow(this.level - dy, this.span + 2 * dx);
    }
    this.pointers.set(event.pointerId, event);
  }

  wheel(event) {
    event.preventDefault();
    if (event.ctrlKey) this.setZoom(this.zoom * Math.exp(-event.deltaY / 300));
    else {  // a trackpad sends many small turns
      this.turned += event.deltaMode ? Math.sign(event.deltaY) * TURN : event.deltaY;
      if (Math.abs(this.turned) < TURN) return;
      this.onStep(Math.sign(this.turned));
      this.turned = 0;
    }
  }

  draw() {
    if (this.canvas.clientWidth === 0) return;
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      this.paint();
    });
  }

  paint() {
    const { canvas, slice, map } = this;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    if (!slice) return;
    const { grey, width, height } = slice;
    const image = new ImageData(width, height);
    const low = this.level - this.span / 2;
    for (let i = 0; i < grey.length; i++) {
      const value = Math.min(255, Math.max(0, (255 * (grey[i] - low)) / this.span));
      const heat = map ? map.grey[i] : 0;
      const share = (this.opacity * heat) / 255;
      const tint = COLOURS[heat];
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = value * (1 - share) + tint[c] * share;
      image.data[4 * i + 3] = 255;
    }
    const picture = new OffscreenCanvas(width, height);
    picture.getContext("2d").putImageData(image, 0, 0);
    const fit = Math.min(canvas.width / width, canvas.height / height) * this.zoom;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = fit < 4;
    context.drawImage(picture, (canvas.width - fit * width) / 2 + this.x * ratio,
      (canvas.height - fit * height) / 2 + this.y * ratio, fit * width, fit * height);
  }
}
