const PARALLEL = 4;  // concurrent requests; the server predicts their scans in shared batches

// Requests to the server.
let token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("token");
if (location.hash.includes("token=")) history.replaceState(null, "", location.pathname);  // keeps it out of bookmarks
async function request(path, options = {}) {
  const authorization = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization } });
  if (response.ok) return response;
  if (response.status === 401) { $("login").hidden = false; $("token").focus(); }
  let reason = `HTTP status ${response.status}`;
  try { reason = (await response.json()).error ?? reason; } catch { /* not JSON: the response of a proxy */ }
  throw Object.assign(Error(reason), { status: response.status });
}
function form(...files) {
  const data = new FormData();
  for (const file of files) data.append("files", file, pathOf(file));
  return data;
}
const pathOf = file => file.webkitRelativePath || file.name;
function blobOf(base64) {
  const bytes = base64 && Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return bytes && new Blob([bytes], { type: "image/png" });
}

// Items: one per waiting file, then one per image, frame or slice of the file.
let items = [], current = null, limits = null, point = null, controller = null, running = 0;
const waiting = [];
function add(files) {
  for (const file of files) {
    const item = { file, name: pathOf(file), row: null, state: "waiting" };
    if (limits && file.size > limits.size) {
      const error = `larger than the limit of ${number(limits.size / 2 ** 20, 0)} MiB`;
      Object.assign(item, { state: "done", row: { scan: item.name, error } });
    } else waiting.push(item);
    items.push(item);
    addToList(item);
  }
  $("main").hidden = $("clear").hidden = items.length === 0;
  $("drop").classList.toggle("few", items.length > 0);
  if (!current && items.length) show(items[0]);
  controller ??= new AbortController();
  while (running < PARALLEL && waiting.length) work();
  showState();
}
async function work() {
  running++;
  for (let item; (item = waiting.shift());) {
    item.state = "running";
    refresh(item);
    try { await analyse(item); } catch (error) {
      if (error.status === 503) {  // busy
        waiting.push(item);
        item.state = "waiting";
        await new Promise(resolve => setTimeout(resolve, 1000));
      } else fail(item, error.name === "AbortError" ? "stopped" : error.status ? error.message
        : `the server cannot be reached or closed the connection (${error.message})`);
    }
    refresh(item);
    showState();
  }
  running--;
  if (!running) { controller = null; showVolumes(); }
  showState();
}
async function analyse(item) {
  const options = { method: "POST", body: form(item.file), signal: controller?.signal };
  const archive = await isArchive(item.file);
  const response = await request("v1/findings?format=ndjson&pictures=true", options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];  // of an incomplete line
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = value.split("\n");
    pieces.push(lines[0]);
    if (lines.length === 1) continue;
    for (const line of [pieces.join(""), ...lines.slice(1, -1)]) addResult(item, JSON.parse(line), archive);
    pieces = [lines.at(-1)];
  }
  if (pieces.join("")) throw Error("the response is incomplete");
  if (!item.row && items.includes(item)) throw Error("the response is empty");
}
async function isArchive(file) {
  const head = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  return head[0] === 0x50 && head[1] === 0x4b;
}
function addResult(first, { scan_png, mask_png, outer_png, size, ...row }, archive) {
  if (!items.includes(first)) return;  // cleared meanwhile
  if (!archive) row.scan = pathOf(first.file);  // a form cannot transmit every name
  const item = first.row ? { file: first.file } : first;
  const image = blobOf(scan_png), mask = blobOf(mask_png), outer = blobOf(outer_png);
  Object.assign(item, { row, name: row.scan, state: "done", image, mask, outer, size, archive });
  if (item !== first) insert(item, first.last);
  first.last = item;
  refresh(item);
  if (item === current) show(item);
  showState();
}
function fail(item, error) {
  if (!items.includes(item)) return;  // cleared meanwhile
  const last = item.last ?? item, failed = { row: { scan: item.name, error }, state: "done" };
  if (last.row) insert({ file: item.file, name: item.name, ...failed }, last);  // keep results of the same file
  else Object.assign(last, failed);
}
function insert(item, after) {
  items.splice(items.indexOf(after) + 1, 0, item);
  addToList(item, after);
}
function showState() {
  const done = items.filter(item => item.state === "done"), errors = done.filter(item => item.row.error).length;
  const review = done.filter(item => item.row.review).length;
  const texts = [`${done.length} of ${items.length} done`, errors ? `${errors} not read` : null,
    review ? `${review} for review` : null];
  $("state").textContent = items.length ? texts.filter(Boolean).join(" \u00b7 ") : "";
  $("stop").hidden = !running;
  for (const id of ["json", "csv"]) $(id).disabled = !done.length;
}

// Volumes: the server computes them from the findings of all slices.
let volumes = [];
async function showVolumes() {
  const slices = items.filter(item => item.row);
  if (!slices.some(item => item.row.series)) return;
  try {
    const response = await request("v1/volumes", { method: "POST", body: JSON.stringify(slices.map(item => item.row)),
      headers: { "Content-Type": "application/json" } });
    const several = (await response.json()).volumes.filter(volume => volume.slices > 1);
    if (slices.some(item => !items.includes(item))) return;  // cleared meanwhile
    volumes = several.map(volume => ({ ...volume, at: line => slices[line] }));
  } catch (error) { $("state").textContent = `volumes: ${error.message}`; return; }
  $("volumes").replaceChildren(...volumes.map(volume => el("button", { onclick: () => showVolume(volume) },
    el("span", { className: "thumb stack", ariaHidden: "true" }, String(volume.slices)),
    el("div", {},
      el("div", { className: "name", title: volume.scan }, "Volume ", el("bdi", {}, volumeName(volume))),
      el("div", { className: "small" }, [volume.organ, volume.label].filter(Boolean).join(", "),
        quiet(` ${volume.slices} slices`))))));
}
function volumeName(volume) {
  const parts = volume.scan.split("/");
  return volume.kind === "file" ? parts.at(-1) : parts.at(-2) ?? volume.scan;
}
async function showVolume(volume) {
  await show(volume.at(volume.largest ?? volume.lines[0]));
  const openSlice = item => { show(item); item.node.scrollIntoView({ block: "nearest" }); };
  const frame = item => item.row.frame == null ? "" : ` \u00b7 ${item.row.frame}`;
  const slice = line => line == null ? quiet("none")
    : el("button", { onclick: () => openSlice(volume.at(line)) }, fileName(volume.at(line)) + frame(volume.at(line)));
  const counts = (values, className = "") => Object.entries(values ?? {})
    .map(([name, n]) => el("div", { className }, `${name}: ${number(n, 0)}`));
  const buttons = (...nodes) => el("div", { className: "files" }, ...nodes);
  const unread = volume.errors ? `, ${volume.errors} not read` : "", millilitres = volume.lesion_volume_mm3 / 1000;
  showFacts(
    ...fact("Volume", el("b", {}, el("bdi", {}, volumeName(volume))),
      el("div", { className: "quiet small" }, `${volume.slices} slices${unread}`)),
    ...fact("Slices per organ", ...counts(volume.organs)),
    ...fact("Label", volume.label ?? quiet("unknown"), ...counts(volume.labels, "quiet small"),
      volume.review ? el("div", { className: "bad" }, `\u2691 ${volume.review} for review`) : null),
    ...fact("Slices with a lesion", number(volume.lesion_slices, 0)),
    ...(volume.lesion_slices ? [...fact("First, last", buttons(slice(volume.first), slice(volume.last))),
      ...fact("Largest area, longest diameter", buttons(slice(volume.largest), slice(volume.longest)))] : []),
    ...fact("Lesion volume",
      volume.lesion_volume_mm3 == null ? quiet("unknown") : `${number(millilitres, 2)} cm\u00b3`),
    ...(volume.diameter_mm == null ? [] : fact("Longest diameter", `${number(volume.diameter_mm)} mm`)),
    ...fact("Spacing: slices, rows, columns", `${times(volume.spacing_mm)} mm`),
    ...(volume.notes.length ? fact("Notes", ...volume.notes.map(note => el("div", { className: "small" }, note))) : []),
    ...(volume.lesion_slices ? fact("Save",
      buttons(saveButton("Segmentation", "The lesions of the volume in its own format, without the patient's name",
        event => saveSegmentation(volume.at(volume.lines[0]), event.target))), saveState()) : []));
}

// The list.
function addToList(item, after) {
  item.node = el("button", { onclick: () => show(item) });
  if (after) after.node.after(item.node); else $("scans").append(item.node);
  refresh(item);
}
function refresh(item) {
  if (!item.node) return;
  const row = item.row;
  if (item.image && !item.url) item.url = URL.createObjectURL(item.image);
  const thumb = item.url ? el("img", { className: "thumb", src: item.url, alt: "", loading: "lazy" })
    : el("span", { className: "thumb" });
  const state = item.state === "waiting" ? quiet("waiting") : !row ? el("progress", { ariaLabel: "in progress" })
    : row.error ? el("span", { className: "bad" }, row.error === "stopped" ? "stopped" : "not read")
    : el("span", {}, [row.organ, row.label].filter(Boolean).join(", "),
      row.review ? el("b", { className: "bad", title: "for review" }, " \u2691") : null);
  item.node.replaceChildren(thumb, el("div", {},
    el("div", { className: "name", title: item.name }, el("bdi", {}, fileName(item)),
      row?.frame == null ? "" : ` \u00b7 ${row.frame}`),
    el("div", { className: "small" }, state)));
  item.node.setAttribute("aria-current", item === current);
  item.node.dataset.state = item.state;
}
const fileName = item => item.name.slice(item.name.lastIndexOf("/") + 1);
function step(by) {
  const next = items[items.indexOf(current) + by];
  if (next) { show(next); next.node.scrollIntoView({ block: "nearest", inline: "nearest" }); }
}

// The findings of the current scan.
function showFacts(...content) {
  const notice = fact("Notice", el("span", { className: "small" }, $("notice").textContent));
  $("facts").replaceChildren(el("dl", {}, ...content, ...notice));
}
const times = spacing => spacing.map(x => x == null ? "?" : number(x, 3)).join(" \u00d7 ");
const saveButton = (text, title, onclick) => el("button", { title, onclick }, text);
const saveState = () => el("div", { id: "saved", className: "small", role: "status" });
function measures(row) {
  if (row.lesion_area_px == null) return [quiet("no segmentation")];
  if (!row.boxes.length) return ["no lesion"];
  const both = (px, mm, unit) => mm == null ? `${number(px)} ${unit === "mm" ? "px" : "px\u00b2"}`
    : `${number(mm)} ${unit} (${number(px)} px)`;
  return [el("div", {}, count(row.boxes.length, "lesion")),
    el("div", {}, `Area ${both(row.lesion_area_px, row.lesion_area_mm2, "mm\u00b2")}`),
    el("div", {}, `Longest diameter ${both(row.diameter_px, row.diameter_mm, "mm")}`)];
}
function showFinding(item) {
  const row = item.row, lines = texts => texts.map(text => el("div", { className: "small" }, text));
  const spacing = row?.spacing_mm ? `, ${times(row.spacing_mm)} mm` : "";
  const list = fact("Scan", el("b", {}, el("bdi", {}, item.name)),
    row?.frame == null ? null : quiet(` frame ${row.frame}`),
    item.size ? el("div", { className: "quiet small" },
      `${item.size[0]} \u00d7 ${item.size[1]} pixels${spacing}`) : null);
  if (!row) list.push(...fact("State", item.state === "waiting" ? "waiting" : "in progress"));
  else if (row.error) list.push(...fact("Error", el("span", { className: "bad" }, row.error)));
  else {
    const boxes = row.boxes ?? [], more = boxes.length > 12 ? [`and ${boxes.length - 12} more`] : [];
    list.push(
      ...fact("Organ", row.organ === "unsupported" ? el("b", {}, row.organ)
        : bars([[row.organ, row.organ_prob]], row.organ), organUncertain(row)),
      ...(row.reason ? fact("Reason", row.reason) : []),
      ...(row.label_probs ? fact("Label", bars(Object.entries(row.label_probs), row.label), labelSet(row)) : []),
      ...(row.confidence == null ? [] : fact("Confidence", percent(row.confidence),
        row.review ? el("b", { className: "bad" }, " \u2691 needs review") : null)),
      ...(row.organ === "unsupported" ? [] : fact("Lesion", ...measures(row), outerArea(row))),
      ...(boxes.length ? fact("Boxes: x, y, width, height",
        ...lines([...boxes.slice(0, 12).map(box => box.join(", ")), ...more])) : []),
      ...(row.notes ? fact("Notes", ...lines(row.notes)) : []),
      ...fact("Save", el("div", { className: "files" },
        saveButton("JSON", "The finding of this scan", () => download(savedName(item, "json"),
          JSON.stringify(row, null, 2), "application/json")),
        saveButton("Image", "The scan as shown, in its own size, PNG", () => saveImage(item)),
        item.mask ? saveButton("Mask", "0 and 255, in the size of the scan, PNG",
          () => download(savedName(item, "mask.png"), item.mask)) : null,
        item.mask && row.series ? saveButton("Segmentation", "The lesions of this DICOM or NIfTI file, or of its "
          + "series, in its own format (DICOM SEG), without the patient's name",
          event => saveSegmentation(item, event.target)) : null), saveState()));
  }
  showFacts(...list);
  $("heat").disabled = !row?.label;
}

// Saving.
function savedName(item, suffix) {
  return `${fileName(item).replace(/\.[^.]*$/, "")}${item.row.frame == null ? "" : `_${item.row.frame}`}.${suffix}`;
}
function download(name, content, type = "") {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
async function saveImage(item) {
  if (drawn?.item !== item) return;
  const area = new OffscreenCanvas(drawn.image.width, drawn.image.height);
  paint(area.getContext("2d"), 1);
  download(savedName(item, "overlay.png"), await area.convertToBlob({ type: "image/png" }));
}
async function saveSegmentation(item, button) {
  const state = $("saved");
  button.disabled = true;
  state.textContent = "in progress \u2026";
  try {
    const slices = items.filter(other => other.row?.series === item.row.series);
    const options = { method: "POST", body: form(...new Set(slices.map(slice => slice.file))) };
    const response = await request("v1/segmentations", options);
    const suffixes = { "application/dicom": "seg.dcm", "application/gzip": "seg.nii.gz" };
    const suffix = suffixes[response.headers.get("content-type")] ?? "seg.zip";
    download(savedName(item, suffix), await response.blob());
    state.textContent = "";
  } catch (error) { state.textContent = error.message; } finally { button.disabled = false; }
}
const findings = () => items.filter(item => item.row).map(item => item.row);
function saveJson() {
  const values = { notice: $("notice").textContent, operating_point: point, findings: findings() };
  download("findings.json", JSON.stringify(values, null, 2), "application/json");
}
function saveTable() {
  const rows = findings(), keys = Object.keys(rows.find(row => !row.error) ?? rows[0]);
  const cell = value => {
    if (value == null) return "";
    if (typeof value === "object") value = JSON.stringify(value);
    else if (typeof value === "string" && /^[=+\-@\t\r]/.test(value)) value = `'${value}`;  // else a formula
    return /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  };
  const lines = [keys, ...rows.map(row => keys.map(key => row[key]))].map(line => line.map(cell).join(","));
  download("findings.csv", lines.join("\r\n") + "\r\n", "text/csv");
}

// Input: dropped files and folders, chosen ones, and pasted images.
async function filesOf(entry, folder = "") {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (folder) Object.defineProperty(file, "webkitRelativePath", { value: folder + file.name });
    return file.name.startsWith(".") && folder ? [] : [file];
  }
  const reader = entry.createReader(), files = [];
  for (;;) {  // the reader returns about a hundred entries at a time
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    for (const inner of entries) files.push(...await filesOf(inner, `${folder}${entry.name}/`));
  }
}
const byPath = (a, b) => pathOf(a).localeCompare(pathOf(b), "en", { numeric: true });
addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", async event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const files = [...event.dataTransfer.files];  // read now: the list is empty after the first await
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry?.()).filter(Boolean);
  add(entries.length ? (await Promise.all(entries.map(entry => filesOf(entry)))).flat().sort(byPath) : files);
});
addEventListener("paste", event => { if (event.clipboardData.files.length) add(event.clipboardData.files); });
$("files").onclick = () => $("pick").click();
$("folder").onclick = () => $("pickfolder").click();
for (const id of ["pick", "pickfolder"]) $(id).onchange = event => {
  add([...event.target.files].filter(file => id === "pick" || !file.name.startsWith(".")).sort(byPath));
  event.target.value = "";
};

function stop() {
  for (const item of waiting.splice(0)) { fail(item, "stopped"); refresh(item); }
  controller?.abort();
}
function clear() {
  controller?.abort();
  waiting.length = 0;
  for (const item of items) if (item.url) URL.revokeObjectURL(item.url);
  items = []; volumes = []; current = drawn = null;
  $("scans").replaceChildren();
  $("volumes").replaceChildren();
  $("main").hidden = $("clear").hidden = true;
  $("drop").classList.remove("few");
  showState();
}
$("stop").onclick = stop;
$("clear").onclick = clear;
$("json").onclick = saveJson;
$("csv").onclick = saveTable;
$("login").onsubmit = event => {
  event.preventDefault();
  token = $("token").value;
  $("login").hidden = true;
  start();
};
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const keys = { ArrowDown: () => step(1), ArrowUp: () => step(-1), j: () => step(1), k: () => step(-1),
    "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: reset,
    f: () => toggle("fill"), o: () => toggle("outline"), h: () => { if (!$("heat").disabled) heat(); },
    m: () => { hidden = !hidden; draw(); } };
  const action = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (action && current) { event.preventDefault(); action(); }
});

async function start() {
  try {
    const about = await (await request("v1/about")).json();
    limits = about.limits;
    if (token) sessionStorage.setItem("token", token);
    const organs = Object.values(about.organs).map(organ => `${organ.scan}: ${organ.classes.join(", ")}`);
    point = about.operating_point;
    $("about").textContent = [...organs, point ? `operating point ${point}` : null].filter(Boolean).join(" \u00b7 ");
  } catch (error) { $("state").textContent = error.message; }
}
start();
