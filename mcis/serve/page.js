"use strict";
// Names and messages come from anywhere: they reach the page as text nodes only, never as markup.
const $ = id => document.getElementById(id);
const AT_ONCE = 4;  // requests; the server answers what waits together

function el(tag, set = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(set)) key in node ? node[key] = value : node.setAttribute(key, value);
  node.append(...children.filter(child => child != null));
  return node;
}
const quiet = text => el("span", { className: "quiet" }, text);
const percent = p => p > 0.9995 && p < 1 ? "> 99.9 %" : p < 0.0005 && p > 0 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
const number = (x, digits = 1) => x.toLocaleString("en", { maximumFractionDigits: digits });

// The server.
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token");
if (location.hash.includes("token=")) history.replaceState(null, "", location.pathname);  // not into bookmarks
async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) } });
  if (answer.ok) return answer;
  if (answer.status === 401) { $("ask").hidden = false; $("token").focus(); }
  let why = `the server says ${answer.status}`;
  try { why = (await answer.json()).error ?? why; } catch { /* no JSON: a proxy's */ }
  throw Object.assign(Error(why), { status: answer.status });
}
function form(...files) {
  const data = new FormData();
  for (const file of files) data.append("files", file, file.webkitRelativePath || file.name);
  return data;
}
function blobOf(base64) {
  return base64 && new Blob([Uint8Array.from(atob(base64), letter => letter.charCodeAt(0))], { type: "image/png" });
}

// Scans: one item a file that waits, and then one a picture, frame or slice of it.
let items = [], current = null, limits = null, stopping = null;
const waiting = [];
let running = 0;
function add(files) {
  for (const file of files) {
    const item = { file, name: file.webkitRelativePath || file.name, row: null, state: "waiting" };
    if (limits && file.size > limits.size) {
      Object.assign(item, { state: "done", row: { scan: item.name, error: `larger than the ${number(limits.size / 2 ** 20, 0)} MiB that this server takes` } });
    } else waiting.push(item);
    items.push(item);
    listed(item);
  }
  $("main").hidden = items.length === 0;
  $("drop").classList.toggle("few", items.length > 0);
  $("clear").hidden = items.length === 0;
  if (!current && items.length) show(items[0]);
  stopping ??= new AbortController();
  while (running < AT_ONCE && waiting.length) work();
  tell();
}
async function work() {
  running++;
  for (let item; (item = waiting.shift());) {
    item.state = "looking";
    refresh(item);
    try { await look(item); } catch (error) {
      if (error.status === 503) { waiting.push(item); item.state = "waiting"; await new Promise(done => setTimeout(done, 1000)); }
      else fail(item, error.name === "AbortError" ? "stopped" : error.status ? error.message : `the server cannot be reached, or broke off (${error.message})`);
    }
    refresh(item);
    tell();
  }
  running--;
  if (!running) { stopping = null; sumUp(); }
  tell();
}

// Volumes: the server sums up the findings of slices, once all are in.
let volumes = [];
async function sumUp() {
  const slices = items.filter(item => item.row);
  if (!slices.some(item => item.row.series)) return;
  try {
    const answer = await ask("v1/volumes", { method: "POST", body: JSON.stringify(slices.map(item => item.row)), headers: { "Content-Type": "application/json" } });
    const found = (await answer.json()).volumes.filter(volume => volume.slices > 1);
    if (slices.some(item => !items.includes(item))) return;  // cleared meanwhile
    volumes = found.map(volume => ({ ...volume, at: line => slices[line] }));
  } catch (error) { $("state").textContent = `volumes: ${error.message}`; return; }
  $("volumes").replaceChildren(...volumes.map(volume => el("button", { onclick: () => showVolume(volume) },
    el("span", { className: "thumb stack", ariaHidden: "true" }, String(volume.slices)),
    el("div", {}, el("div", { className: "name", title: volume.scan }, "Volume ", el("bdi", {}, folderOf(volume))),
      el("div", { className: "small" }, [volume.organ, volume.label].filter(Boolean).join(", "), quiet(` ${volume.slices} slices`))))));
}
const folderOf = volume => volume.kind === "file" ? volume.scan.split("/").at(-1) : volume.scan.split("/").slice(0, -1).at(-1) ?? volume.scan;
async function showVolume(volume) {
  await show(volume.at(volume.largest ?? volume.lines[0]));
  const fact = (name, ...what) => [el("dt", {}, name), el("dd", {}, ...what)];
  const slice = line => line == null ? quiet("none") : el("button", { onclick: () => { show(volume.at(line)); volume.at(line).node.scrollIntoView({ block: "nearest" }); } }, label(volume.at(line)));
  const counted = counts => Object.entries(counts ?? {}).map(([name, n]) => el("div", {}, `${name}: ${number(n, 0)}`));
  $("facts").replaceChildren(el("dl", {}, ...fact("Volume", el("b", {}, el("bdi", {}, folderOf(volume))), el("div", { className: "quiet small" }, `${volume.slices} slices${volume.errors ? `, ${volume.errors} not read` : ""}`)),
    ...fact("Organ, by slices", ...counted(volume.organs)), ...fact("Label", volume.label ?? quiet("unknown"), ...counted(volume.labels).map(node => { node.className = "quiet small"; return node; }),
      volume.review ? el("div", { className: "bad" }, `\u2691 ${volume.review} for review`) : null),
    ...fact("Slices with a lesion", number(volume.lesion_slices, 0)),
    ...(volume.lesion_slices ? [...fact("First, last", el("div", { className: "files" }, slice(volume.first), slice(volume.last))),
      ...fact("Largest area, longest diameter", el("div", { className: "files" }, slice(volume.largest), slice(volume.longest)))] : []),
    ...fact("Lesion volume", volume.lesion_volume_mm3 == null ? quiet("unknown") : `${number(volume.lesion_volume_mm3 / 1000, 2)} cm\u00b3`),
    ...(volume.diameter_mm == null ? [] : fact("Longest diameter", `${number(volume.diameter_mm)} mm`)),
    ...fact("Spacing: slices, rows, columns", volume.spacing_mm.map(x => x == null ? "?" : number(x, 3)).join(" \u00d7 "), " mm"),
    ...(volume.notes.length ? fact("Notes", ...volume.notes.map(note => el("div", { className: "small" }, note))) : []),
    ...(volume.lesion_slices ? fact("Save", el("div", { className: "files" }, el("button", { title: "The lesions of the whole volume, in its own format, without the patient's name", onclick: event => saveSegmentation(volume.at(volume.lines[0]), event.target) }, "Segmentation")), el("div", { id: "saved", className: "small", role: "status" })) : []),
    ...fact("Notice", el("span", { className: "small" }, $("notice").textContent))));
}
const label = item => `${item.name.split("/").at(-1)}${item.row.frame == null ? "" : ` \u00b7 ${item.row.frame}`}`;
function fail(item, why) {
  if (!items.includes(item)) return;  // cleared meanwhile
  const last = item.last ?? item;  // what of a file was answered before stays
  if (!last.row) Object.assign(last, { row: { scan: last.name, error: why }, state: "done" });
  else { const next = { file: item.file, name: item.name, row: { scan: item.name, error: why }, state: "done" }; insert(next, last); }
}
async function look(item) {
  const options = { method: "POST", body: form(item.file), signal: stopping?.signal }, inside = await isArchive(item.file);
  const answer = await ask("v1/findings?format=ndjson&pictures=true", options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", pieces = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = value.split("\n");
    pieces.push(lines[0]);
    if (lines.length === 1) continue;
    const whole = [pieces.join(""), ...lines.slice(1, -1)];
    pieces = [lines.at(-1)];
    for (const line of whole) take(item, JSON.parse(line), inside);
  }
  if (pieces.join("")) throw Error("its answer was cut short");
  if (!item.row && items.includes(item)) throw Error("it said nothing");
}
async function isArchive(file) {
  const head = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return head[0] === 0x50 && head[1] === 0x4b;
}
function take(first, { scan_png, mask_png, size, ...row }, inside) {
  if (!items.includes(first)) return;  // cleared meanwhile
  if (!inside) row.scan = first.file.webkitRelativePath || first.file.name;  // a form cannot carry every name as it is
  const item = first.row ? { file: first.file } : first;
  Object.assign(item, { row, name: row.scan, state: "done", image: blobOf(scan_png), mask: blobOf(mask_png), size, inside });
  if (item !== first) insert(item, first.last);
  first.last = item;
  refresh(item);
  if (item === current) show(item);
  tell();
}
function insert(item, after) {
  items.splice(items.indexOf(after) + 1, 0, item);
  listed(item, after);
}
function tell() {
  const done = items.filter(item => item.state === "done"), errors = done.filter(item => item.row.error).length;
  const review = done.filter(item => item.row.review).length;
  const words = [`${done.length} of ${items.length} done`, errors ? `${errors} not read` : null, review ? `${review} for review` : null];
  $("state").textContent = items.length ? words.filter(Boolean).join(" \u00b7 ") : "";
  $("stop").hidden = !running;
  for (const id of ["json", "csv"]) $(id).disabled = !done.length;
}

// The list.
function listed(item, after) {
  item.node = el("button", { onclick: () => show(item) });
  if (after) after.node.after(item.node); else $("scans").append(item.node);
  refresh(item);
}
function refresh(item) {
  if (!item.node) return;
  const row = item.row, cut = item.name.lastIndexOf("/") + 1;
  if (item.image && !item.url) item.url = URL.createObjectURL(item.image);
  const picture = item.url ? el("img", { className: "thumb", src: item.url, alt: "", loading: "lazy" }) : el("span", { className: "thumb" });
  const said = item.state === "waiting" ? quiet("waiting") : !row ? el("progress", { ariaLabel: "being looked at" })
    : row.error ? el("span", { className: "bad" }, row.error === "stopped" ? "stopped" : "not read")
    : el("span", {}, [row.organ, row.label].filter(Boolean).join(", "), row.review ? el("b", { className: "bad", title: "for review" }, " \u2691") : null);
  const frame = row?.frame == null ? "" : ` \u00b7 ${row.frame}`;
  item.node.replaceChildren(picture, el("div", {}, el("div", { className: "name", title: item.name }, el("bdi", {}, item.name.slice(cut)), frame), el("div", { className: "small" }, said)));
  item.node.setAttribute("aria-current", item === current);
  item.node.dataset.state = item.state;
}
function step(by) {
  const next = items[items.indexOf(current) + by];
  if (next) { show(next); next.node.scrollIntoView({ block: "nearest", inline: "nearest" }); }
}

// The scan: its picture as grey values through window and level, the mask over it, moved and magnified by `view`.
const canvas = $("canvas"), view = { x: 0, y: 0, scale: 1, whole: true };
let drawn = null;  // what of the current scan is laid out: { image, shown, mask, fill, edge, heat }
async function show(item) {
  const before = current;
  current = item;
  if (before && before !== item) refresh(before);
  refresh(item);
  facts(item);
  if (before !== item) { drawn = null; draw(); }
  if (!item.image) return draw();
  if (drawn?.item === item) return;
  const [image, mask] = await Promise.all([createImageBitmap(item.image), item.mask ? createImageBitmap(item.mask) : null]);
  if (item !== current) return;
  drawn = { item, image: pixels(image, ...item.size), mask: mask && pixels(mask), shown: null, heat: null };
  if (mask) drawn.layers = layers(drawn.mask);
  if (item.heat) drawn.heat = warm(await createImageBitmap(item.heat));
  fit();
  windowed();
  draw();
}
function pixels(bitmap, width = bitmap.width, height = bitmap.height) {  // a picture that was sent smaller gets its scan's size back
  const area = new OffscreenCanvas(width, height), context = area.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  return { area, context, width, height, data: context.getImageData(0, 0, width, height) };
}
const COLOUR = [255, 214, 10];
function layers({ data, width, height }) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data.data[4 * (y * width + x)] > 127;
  const fill = new ImageData(width, height), edge = new Path2D();
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    if (!inside(x, y)) continue;
    fill.data.set([...COLOUR, 255], 4 * (y * width + x));
    // the outline runs along the edges of pixels, so that it is as thin at every magnification
    if (!inside(x, y - 1)) { edge.moveTo(x, y); edge.lineTo(x + 1, y); }
    if (!inside(x, y + 1)) { edge.moveTo(x, y + 1); edge.lineTo(x + 1, y + 1); }
    if (!inside(x - 1, y)) { edge.moveTo(x, y); edge.lineTo(x, y + 1); }
    if (!inside(x + 1, y)) { edge.moveTo(x + 1, y); edge.lineTo(x + 1, y + 1); }
  }
  const area = new OffscreenCanvas(width, height);
  area.getContext("2d").putImageData(fill, 0, 0);
  return { fill: area, edge };
}
function warm(bitmap) {  // black through red to yellow, clearer where it is stronger
  const map = pixels(bitmap), out = new ImageData(map.width, map.height);
  for (let at = 0; at < out.data.length; at += 4) {
    const value = map.data.data[at];
    out.data.set([Math.min(255, 2 * value), Math.max(0, 2 * value - 255), 0, 0.75 * value], at);
  }
  map.context.putImageData(out, 0, 0);
  return map.area;
}
function windowed() {
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
function fitting() {
  return drawn ? Math.min(canvas.clientWidth / drawn.image.width, canvas.clientHeight / drawn.image.height) : 1;
}
function fit() {
  view.whole = true;
  view.scale = fitting();
  view.x = (canvas.clientWidth - view.scale * (drawn?.image.width ?? 0)) / 2;
  view.y = (canvas.clientHeight - view.scale * (drawn?.image.height ?? 0)) / 2;
}
function paint(context, scale) {  // the scan with all that is over it, in its own pixels
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
  if ($("outline").ariaPressed === "true") for (const [colour, wide] of [["rgb(0 0 0 / .6)", 4], [`rgb(${COLOUR})`, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = wide / scale;
    context.stroke(drawn.layers.edge);
  }
  context.globalAlpha = 1;
}
let hidden = false;
function draw() {
  const dense = devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * dense);
  canvas.height = Math.round(canvas.clientHeight * dense);
  const context = canvas.getContext("2d");
  if (!drawn?.shown) return;
  context.setTransform(dense * view.scale, 0, 0, dense * view.scale, dense * view.x, dense * view.y);
  paint(context, dense * view.scale);
  $("zoom").textContent = `${Math.round(100 * view.scale)} %`;
}
function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  if (!drawn) return;
  const scale = Math.min(40, Math.max(0.5 * fitting(), view.scale * factor));
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
  windowed();
  draw();
}
const fingers = new Map();
canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); };
canvas.onpointerup = canvas.onpointercancel = event => fingers.delete(event.pointerId);
canvas.onpointermove = event => {
  const box = canvas.getBoundingClientRect(), was = fingers.get(event.pointerId);
  pointed(event.clientX - box.left, event.clientY - box.top);
  if (!was) return;
  const [dx, dy] = [event.clientX - was.clientX, event.clientY - was.clientY];
  fingers.set(event.pointerId, event);
  if (fingers.size === 2) {
    const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
    const apart = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
    view.x += dx / 2; view.y += dy / 2;
    zoom(apart(event) / Math.max(1, apart(was)), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
  } else if (event.buttons & 2 || event.shiftKey) {
    $("window").value = Number($("window").value) + dx;
    $("level").value = Number($("level").value) + dy / 2;
    windowed();
    draw();
  } else { view.x += dx; view.y += dy; view.whole = false; draw(); }
};
canvas.oncontextmenu = event => event.preventDefault();
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  const box = canvas.getBoundingClientRect();
  zoom(1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
function pointed(x, y) {  // where the pointer is, in pixels of the scan, and what is there
  const column = Math.floor((x - view.x) / view.scale), line = Math.floor((y - view.y) / view.scale);
  if (!drawn || column < 0 || line < 0 || column >= drawn.image.width || line >= drawn.image.height) return void ($("over").textContent = "");
  const at = 4 * (line * drawn.image.width + column), rgb = [...drawn.image.data.data.slice(at, at + 3)];
  const value = rgb[0] === rgb[1] && rgb[1] === rgb[2] ? rgb[0] : rgb.join(", ");
  $("over").textContent = `x ${column}, y ${line}: ${value}${drawn.mask?.data.data[at] > 127 ? ", within the lesion" : ""}`;
}

// What was found.
function bars(pairs, top) {
  return el("div", { className: "bars" }, ...pairs.flatMap(([name, p]) => {
    const className = name === top ? "top" : "", fill = el("i");
    if (p == null) return [el("span", { className }, name), el("span"), el("span")];
    fill.style.width = `${100 * p}%`;
    return [el("span", { className }, name), el("div", { className: `bar ${className}` }, fill), el("span", { className }, percent(p))];
  }));
}
function measures(row) {
  if (row.lesion_area_px == null) return [quiet("not outlined")];
  if (!row.boxes.length) return ["no lesion found"];
  const both = (px, mm, unit, digits) => mm == null ? `${number(px)} ${unit === "mm" ? "px" : "px\u00b2"}` : `${number(mm, digits)} ${unit} (${number(px)} px)`;
  return [el("div", {}, `${row.boxes.length} ${row.boxes.length === 1 ? "lesion" : "lesions"}`),
    el("div", {}, `Area ${both(row.lesion_area_px, row.lesion_area_mm2, "mm\u00b2", 1)}`),
    el("div", {}, `Longest diameter ${both(row.diameter_px, row.diameter_mm, "mm", 1)}`)];
}
function facts(item) {
  const row = item.row, fact = (name, ...what) => [el("dt", {}, name), el("dd", {}, ...what)];
  const lines = (...texts) => texts.map(text => el("div", { className: "small" }, text));
  const list = [...fact("Scan", el("b", {}, el("bdi", {}, item.name)), row?.frame == null ? null : quiet(` frame ${row.frame}`), item.size ? el("div", { className: "quiet small" }, `${item.size[0]} \u00d7 ${item.size[1]} pixels${row.spacing_mm ? `, ${row.spacing_mm.map(x => number(x, 3)).join(" \u00d7 ")} mm` : ""}`) : null)];
  if (!row) list.push(...fact("State", item.state === "waiting" ? "waits for its turn" : "is being looked at"));
  else if (row.error) list.push(...fact("Error", el("span", { className: "bad" }, row.error)));
  else {
    list.push(...fact("Organ", row.organ === "unsupported" ? el("b", {}, "unsupported") : bars([[row.organ, row.organ_prob]], row.organ)));
    if (row.reason) list.push(...fact("Why", row.reason));
    if (row.label_probs) list.push(...fact("Label", bars(Object.entries(row.label_probs), row.label)));
    if (row.confidence != null) list.push(...fact("Confidence", percent(row.confidence), row.review ? el("b", { className: "bad" }, " \u2691 somebody should look") : null));
    if (row.organ !== "unsupported") list.push(...fact("Lesion", ...measures(row)));
    if (row.boxes?.length) list.push(...fact("Boxes: x, y, width, height", ...lines(...row.boxes.slice(0, 12).map(box => box.join(", ")), ...(row.boxes.length > 12 ? [`and ${row.boxes.length - 12} more`] : []))));
    if (row.notes) list.push(...fact("In reading", ...lines(...row.notes)));
  }
  if (row && !row.error) {
    const save = (text, title, onclick) => el("button", { title, onclick }, text);
    list.push(...fact("Save", el("div", { className: "files" }, save("JSON", "This scan's finding", () => download(stem(item, "json"), JSON.stringify(row, null, 2), "application/json")),
      save("Picture", "The scan as it is shown, at its own size, PNG", () => savePicture(item)),
      item.mask ? save("Mask", "0 and 255, at the scan's size, PNG", () => download(stem(item, "mask.png"), item.mask)) : null,
      item.mask && row.series ? save("Segmentation", "The lesions of this DICOM or NIfTI file, or of its whole series, in its own format (DICOM SEG), without the patient's name", event => saveSegmentation(item, event.target)) : null),
    el("div", { id: "saved", className: "small", role: "status" })));
  }
  $("facts").replaceChildren(el("dl", {}, ...list, ...fact("Notice", el("span", { className: "small" }, $("notice").textContent))));
  $("heat").disabled = !row?.label;
}

// Saving.
const stem = (item, suffix) => `${item.name.split("/").at(-1).replace(/\.[^.]*$/, "")}${item.row.frame == null ? "" : `_${item.row.frame}`}.${suffix}`;
function download(name, content, type = "") {
  const link = el("a", { href: URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function savePicture(item) {
  if (drawn?.item !== item) return;
  const area = new OffscreenCanvas(drawn.image.width, drawn.image.height);
  paint(area.getContext("2d"), 1);
  download(stem(item, "overlay.png"), await area.convertToBlob({ type: "image/png" }));
}
async function saveSegmentation(item, button) {
  const said = $("saved");
  button.disabled = true;
  said.textContent = "is being made \u2026";
  try {
    const same = items.filter(other => other.row?.series === item.row.series);
    const answer = await ask("v1/segmentations", { method: "POST", body: form(...new Set(same.map(other => other.file))) });
    const kind = answer.headers.get("content-type");
    download(stem(item, { "application/dicom": "seg.dcm", "application/gzip": "seg.nii.gz" }[kind] ?? "seg.zip"), await answer.blob());
    said.textContent = "";
  } catch (error) { said.textContent = error.message; } finally { button.disabled = false; }
}
const found = () => items.filter(item => item.row).map(item => item.row);
function saveTable() {
  const rows = found(), keys = Object.keys(rows.find(row => !row.error) ?? rows[0]);
  const cell = value => {
    if (value == null) return "";
    if (typeof value === "object") value = JSON.stringify(value);
    else if (typeof value === "string" && /^[=+\-@\t\r]/.test(value)) value = `'${value}`;  // a table's program would compute it
    return /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  };
  download("findings.csv", [keys, ...rows.map(row => keys.map(key => row[key]))].map(line => line.map(cell).join(",")).join("\r\n") + "\r\n", "text/csv");
}

async function heat() {
  const item = current, on = $("heat").ariaPressed !== "true";
  $("heat").ariaPressed = on;
  if (on && item?.row?.label && !item.heat) {
    $("heat").textContent = "Heat map \u2026";
    try {
      const answer = await ask(`v1/heat?frame=${item.row.frame ?? 0}${item.inside ? `&scan=${encodeURIComponent(item.row.scan)}` : ""}`, { method: "POST", body: form(item.file) });
      item.heat = await answer.blob();
      item.drop = Number(answer.headers.get("largest-drop"));
    } catch (error) { $("over").textContent = error.message; }
    $("heat").textContent = "Heat map";
    if (item.heat && drawn?.item === item) drawn.heat = warm(await createImageBitmap(item.heat));
  }
  if (on && item?.drop != null) $("over").textContent = `Hiding what is hottest takes ${percent(item.drop)} from the probability of ${item.row.label}${item.drop < 0.05 ? ": next to nothing" : ""}`;
  draw();
}

function toggle(id) { $(id).ariaPressed = $(id).ariaPressed !== "true"; draw(); }
function clear() {
  stopping?.abort();
  waiting.length = 0;
  for (const item of items) if (item.url) URL.revokeObjectURL(item.url);
  items = []; volumes = []; current = drawn = null;
  $("scans").replaceChildren();
  $("volumes").replaceChildren();
  $("main").hidden = $("clear").hidden = true;
  $("drop").classList.remove("few");
  tell();
}

// Drops: a folder is walked, whatever the depth.
async function filesOf(entry, folder = "") {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    if (folder) Object.defineProperty(file, "webkitRelativePath", { value: folder + file.name });
    return file.name.startsWith(".") && folder ? [] : [file];
  }
  const reader = entry.createReader(), found = [];
  for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length;)  // a hundred at a time
    for (const one of some) found.push(...await filesOf(one, `${folder}${entry.name}/`));
  return found;
}
const byName = (a, b) => (a.webkitRelativePath || a.name).localeCompare(b.webkitRelativePath || b.name, "en", { numeric: true });
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", async event => {
  event.preventDefault();
  document.body.classList.remove("over");
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean), plain = [...event.dataTransfer.files];
  add(entries.length ? (await Promise.all(entries.map(entry => filesOf(entry)))).flat().sort(byName) : plain);
});
addEventListener("paste", event => { if (event.clipboardData.files.length) add(event.clipboardData.files); });

$("files").onclick = () => $("pick").click();
$("folder").onclick = () => $("pickfolder").click();
for (const id of ["pick", "pickfolder"]) $(id).onchange = event => {
  add([...event.target.files].filter(file => id === "pick" || !file.name.startsWith(".")).sort(byName));
  event.target.value = "";
};
for (const id of ["fill", "outline"]) $(id).onclick = () => toggle(id);
for (const id of ["window", "level"]) $(id).oninput = () => { windowed(); draw(); };
$("opacity").oninput = draw;
$("heat").onclick = heat;
$("in").onclick = () => zoom(1.25);
$("out").onclick = () => zoom(0.8);
$("reset").onclick = reset;
$("stop").onclick = () => { for (const item of waiting.splice(0)) { fail(item, "stopped"); refresh(item); } stopping?.abort(); };
$("clear").onclick = clear;
$("json").onclick = () => download("findings.json", JSON.stringify({ notice: $("notice").textContent, findings: found() }, null, 2), "application/json");
$("csv").onclick = saveTable;
$("ask").onsubmit = event => {
  event.preventDefault();
  token = $("token").value;
  $("ask").hidden = true;
  start();
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const keys = { ArrowDown: () => step(1), ArrowUp: () => step(-1), j: () => step(1), k: () => step(-1), "+": () => zoom(1.25), "=": () => zoom(1.25),
    "-": () => zoom(0.8), 0: reset, f: () => toggle("fill"), o: () => toggle("outline"), h: () => { if (!$("heat").disabled) heat(); },
    m: () => { hidden = !hidden; draw(); } };
  const act = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (act && current) { event.preventDefault(); act(); }
});
new ResizeObserver(() => { if (view.whole) fit(); draw(); }).observe(canvas);

async function start() {
  try {
    const about = await (await ask("v1/about")).json();
    limits = about.limits;
    if (token) sessionStorage.setItem("token", token);
    const organs = Object.values(about.organs).map(organ => `${organ.scan}: ${organ.classes.join(", ")}`);
    $("about").textContent = organs.join(" \u00b7 ");
  } catch (error) { $("state").textContent = error.message; }
}
start();
