// The viewer: the current scan through window and level, with its mask and saliency map, moved and scaled by `view`.
const canvas = $("canvas"), view = { x: 0, y: 0, scale: 1, whole: true };
const COLOUR = [255, 214, 10];
let drawn = null;  // the decoded images of the current scan: { item, image, shown, mask, layers, outer, heat }
let hidden = false;  // whether the lesion is hidden

async function show(item) {
  const before = current;
  current = item;
  if (before && before !== item) refresh(before);
  refresh(item);
  showFinding(item);
  if (before !== item) { drawn = null; draw(); }
  if (!item.image) return draw();
  if (drawn?.item === item) return;
  const decoded = [item.image, item.mask, item.outer].map(blob => blob ? createImageBitmap(blob) : null);
  const [image, mask, outer] = await Promise.all(decoded);
  if (item !== current) return;
  drawn = { item, image: pixels(image, ...item.size), mask: mask && pixels(mask), shown: null, heat: null };
  if (mask) drawn.layers = layers(drawn.mask);
  if (outer) drawn.outer = layers(pixels(outer), true).edge;
  if (item.heat) drawn.heat = heatColours(await createImageBitmap(item.heat));
  fit();
  applyWindow();
  draw();
}
function pixels(bitmap, width = bitmap.width, height = bitmap.height) {  // scales a reduced image to the scan's size
  const area = new OffscreenCanvas(width, height), context = area.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  return { area, context, width, height, data: context.getImageData(0, 0, width, height) };
}
function layers({ data, width, height }, dashed = false) {
  const period = Math.max(2, Math.round(Math.max(width, height) / 64)), kept = (x, y) => (x + y) % period < period / 2;
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data.data[4 * (y * width + x)] > 127;
  const fill = new ImageData(width, height), edge = new Path2D();
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (!inside(x, y)) continue;
    fill.data.set([...COLOUR, 255], 4 * (y * width + x));
    if (dashed && !kept(x, y)) continue;
    // the outline follows the edges of pixels, so that its width does not depend on the zoom
    if (!inside(x, y - 1)) { edge.moveTo(x, y); edge.lineTo(x + 1, y); }
    if (!inside(x, y + 1)) { edge.moveTo(x, y + 1); edge.lineTo(x + 1, y + 1); }
    if (!inside(x - 1, y)) { edge.moveTo(x, y); edge.lineTo(x, y + 1); }
    if (!inside(x + 1, y)) { edge.moveTo(x + 1, y); edge.lineTo(x + 1, y + 1); }
  }
  const area = new OffscreenCanvas(width, height);
  area.getContext("2d").putImageData(fill, 0, 0);
  return { fill: area, edge };
}
function heatColours(bitmap) {  // transparent black through red to yellow
  const map = pixels(bitmap), out = new ImageData(map.width, map.height);
  for (let at = 0; at < out.data.length; at += 4) {
    const value = map.data.data[at];
    out.data.set([Math.min(255, 2 * value), Math.max(0, 2 * value - 255), 0, 0.75 * value], at);
  }
  map.context.putImageData(out, 0, 0);
  return map.area;
}
function applyWindow() {
  if (!drawn) return;
  const width = Number($("window").value), low = Number($("level").value) - width / 2, { data } = drawn.image.data;
  const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => (255 * (value - low)) / width);
  const out = new ImageData(drawn.image.width, drawn.image.height);
  for (let at = 0; at < data.length; at += 4) {
    for (let k = 0; k < 3; k++) out.data[at + k] = table[data[at + k]];
    out.data[at + 3] = 255;
  }
  drawn.shown ??= new OffscreenCanvas(out.width, out.height);
  drawn.shown.getContext("2d").putImageData(out, 0, 0);
}
function fittingScale() {
  return drawn ? Math.min(canvas.clientWidth / drawn.image.width, canvas.clientHeight / drawn.image.height) : 1;
}
function fit() {
  view.whole = true;
  view.scale = fittingScale();
  view.x = (canvas.clientWidth - view.scale * (drawn?.image.width ?? 0)) / 2;
  view.y = (canvas.clientHeight - view.scale * (drawn?.image.height ?? 0)) / 2;
}
function paint(context, scale) {  // the scan and its overlays, in the scan's pixels
  context.imageSmoothingEnabled = scale < 3;
  context.drawImage(drawn.shown, 0, 0);
  if (drawn.heat && $("heat").ariaPressed === "true") context.drawImage(drawn.heat, 0, 0);
  if (!drawn.layers || hidden) return;
  const opacity = Number($("opacity").value) / 100;
  context.imageSmoothingEnabled = false;
  context.globalAlpha = 0.5 * opacity;
  if ($("fill").ariaPressed === "true") context.drawImage(drawn.layers.fill, 0, 0);
  context.globalAlpha = opacity;
  context.lineCap = "square";
  const strokes = $("outline").ariaPressed === "true" ? [["rgb(0 0 0 / .6)", 4], [`rgb(${COLOUR})`, 2]] : [];
  for (const [colour, width] of strokes) {
    context.strokeStyle = colour;
    context.lineWidth = width / scale;
    context.stroke(drawn.layers.edge);
  }
  if (drawn.outer && strokes.length) {
    context.lineWidth = 1 / scale;
    context.stroke(drawn.outer);
  }
  context.globalAlpha = 1;
}
function draw() {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  const context = canvas.getContext("2d");
  if (!drawn?.shown) return;
  context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
  paint(context, ratio * view.scale);
  $("zoom").textContent = `${Math.round(100 * view.scale)} %`;
}
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  if (!drawn) return;
  const scale = Math.min(40, Math.max(0.5 * fittingScale(), view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  view.whole = false;
  draw();
}
function reset() {
  $("window").value = 255;
  $("level").value = 127.5;
  fit();
  applyWindow();
  draw();
}
function toggle(id) { $(id).ariaPressed = $(id).ariaPressed !== "true"; draw(); }

async function heat() {
  const item = current, on = $("heat").ariaPressed !== "true", row = item?.row;
  $("heat").ariaPressed = on;
  if (on && row?.label && !item.heat) {
    $("heat").textContent = "Saliency map \u2026";
    try {
      const scan = item.archive ? `&scan=${encodeURIComponent(row.scan)}` : "";
      const options = { method: "POST", body: form(item.file) };
      const response = await request(`v1/heat?frame=${row.frame ?? 0}${scan}`, options);
      item.heat = await response.blob();
      item.drop = Number(response.headers.get("largest-drop"));
    } catch (error) { $("hint").textContent = error.message; }
    $("heat").textContent = "Saliency map";
    if (item.heat && drawn?.item === item) drawn.heat = heatColours(await createImageBitmap(item.heat));
  }
  if (on && item?.drop != null) {
    const effect = `${percent(item.drop)}${item.drop < 0.05 ? " (a weak effect)" : ""}`;
    $("hint").textContent = `Hiding the hottest part lowers the probability of ${row.label} by ${effect}`;
  }
  draw();
}

// Pointers: one moves the scan, or changes window and level with the right button; two zoom.
const pointers = new Map();
canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, event); };
canvas.onpointerup = canvas.onpointercancel = event => pointers.delete(event.pointerId);
canvas.onpointermove = event => {
  const box = canvas.getBoundingClientRect(), before = pointers.get(event.pointerId);
  showPixel(event.clientX - box.left, event.clientY - box.top);
  if (!before) return;
  const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const distance = pointer => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
    view.x += dx / 2;
    view.y += dy / 2;
    zoom(distance(event) / Math.max(1, distance(before)),
      (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
  } else if (event.buttons & 2 || event.shiftKey) {
    $("window").value = Number($("window").value) + dx;
    $("level").value = Number($("level").value) + dy / 2;
    applyWindow();
    draw();
  } else { view.x += dx; view.y += dy; view.whole = false; draw(); }
};
canvas.oncontextmenu = event => event.preventDefault();
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoom(1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
function showPixel(x, y) {  // position and value of the pixel below the pointer
  const column = Math.floor((x - view.x) / view.scale), line = Math.floor((y - view.y) / view.scale);
  const inside = drawn && column >= 0 && line >= 0 && column < drawn.image.width && line < drawn.image.height;
  if (!inside) { $("hint").textContent = ""; return; }
  const at = 4 * (line * drawn.image.width + column), rgb = [...drawn.image.data.data.slice(at, at + 3)];
  const value = rgb[0] === rgb[1] && rgb[1] === rgb[2] ? rgb[0] : rgb.join(", ");
  $("hint").textContent = `x ${column}, y ${line}: ${value}${drawn.mask?.data.data[at] > 127 ? ", in the lesion" : ""}`;
}
for (const id of ["fill", "outline"]) $(id).onclick = () => toggle(id);
for (const id of ["window", "level"]) $(id).oninput = () => { applyWindow(); draw(); };
$("opacity").oninput = draw;
$("heat").onclick = heat;
$("in").onclick = () => zoom(1.25);
$("out").onclick = () => zoom(0.8);
$("reset").onclick = reset;
new ResizeObserver(() => { if (view.whole) fit(); draw(); }).observe(canvas);
