const { run, chunk: CHUNK, keys: KEYS, volumes: VOLUMES, volumeKeys: VOLUME_KEYS, mm: IN_MM }
  = JSON.parse($("data").textContent);
const TOTAL = run.counts.scans, CACHED = 32, SIZES = [25, 50, 100, 200], VOLUMES_SHOWN = 10;
const digitsOf = n => n < 100 ? 1 : 0;

function replaceChildren(node, ...children) {  // keeps the keyboard focus at its place
  const inputs = () => [...node.querySelectorAll("button, select")], at = inputs().indexOf(document.activeElement);
  node.replaceChildren(...children);
  if (at >= 0) (inputs()[at]?.disabled ? inputs().find(input => !input.disabled) : inputs()[at])?.focus();
}

// Rows are in script files of CHUNK rows, loaded on demand: unlike fetch, a script may be loaded from file://.
const chunks = new Map(), arrived = new Map();
window.mcisRows = (number, rows) => arrived.set(`rows_${number}`, rows);
window.mcisVolumes = (number, rows) => arrived.set(`volumes_${number}`, rows);
function load(kind, number) {
  const key = `${kind}_${number}`, promise = chunks.get(key) ?? new Promise((resolve, reject) => {
    const script = el("script", { src: `page/${kind}_${String(number).padStart(4, "0")}.js` });
    script.onload = () => { script.remove(); resolve(arrived.get(key)); arrived.delete(key); };
    script.onerror = () => {
      script.remove();
      chunks.delete(key);
      reject(Error(`${script.src} cannot be read: is the folder "page" next to this file?`));
    };
    document.head.append(script);
  });
  chunks.delete(key);
  chunks.set(key, promise);  // the most recently used is last, the first is dropped
  if (chunks.size > CACHED) chunks.delete(chunks.keys().next().value);
  return promise;
}
async function rowAt(index) {
  const values = (await load("rows", Math.floor(index / CHUNK)))[index % CHUNK];
  return { index, ...Object.fromEntries(KEYS.map((key, i) => [key, values[i]])) };
}
async function volumeAt(index) {
  const values = (await load("volumes", Math.floor(index / CHUNK)))[index % CHUNK];
  return Object.fromEntries(VOLUME_KEYS.map((key, i) => [key, values[i]]));
}

const CONFIDENCE = "Probability of the label times the expected overlap of the outline; "
  + "below the limit of this organ: a person should look";

// Columns that can be sorted by. `down`: the first click sorts the largest first.
const COLUMNS = {
  index: { title: "#", value: row => row.index },
  scan: { title: "Scan", value: row => row.scan, text: true },
  organ: { title: "Organ", value: row => row.organ, text: true },
  organ_prob: { title: "Probability of the organ", short: "prob.", value: row => row.organ_prob },
  label: { title: "Label", value: row => row.label, text: true },
  label_prob: { title: "Probability of the label", short: "prob.", value: row => row.label_probs?.[row.label] },
  confidence: { title: "Confidence", short: "confidence", about: CONFIDENCE, value: row => row.confidence },
  lesions: { title: "Lesions", value: row => row.lesions, down: true },
  lesion_area_px: { title: "Lesion area, pixels", short: "Area", value: row => row.lesion_area_px, down: true },
  lesion_area_mm2: { title: "Lesion area, mm\u00b2", short: "mm\u00b2", value: row => row.lesion_area_mm2, down: true },
  diameter_px: { title: "Longest diameter, pixels", short: "\u2300", value: row => row.diameter_px, down: true },
  diameter_mm: { title: "Longest diameter, mm", short: "mm", value: row => row.diameter_mm, down: true },
};
if (!IN_MM) for (const key of ["lesion_area_mm2", "diameter_mm"]) delete COLUMNS[key];
const HEADS = [["index"], [], ["scan"], ["organ", "organ_prob"], ["label", "label_prob", "confidence"], ["lesions"],
  ["lesion_area_px", "lesion_area_mm2", "diameter_px", "diameter_mm"].filter(key => key in COLUMNS)];

let columns = null;  // an array per column with the values of all scans, made at the first sort or filter
async function allColumns() {
  if (columns) return columns;
  const made = Object.fromEntries([...Object.keys(COLUMNS), "series"].map(key => [key, new Array(TOTAL)]));
  const interned = new Map();  // one copy of each organ, label and series
  for (let start = 0; start < TOTAL; start += CHUNK) {
    if (TOTAL > CHUNK) $("state").textContent = `reading ${start.toLocaleString("en")} of ${count(TOTAL, "scan")}`;
    await load("rows", start / CHUNK);
    for (let i = start; i < Math.min(start + CHUNK, TOTAL); i++) {
      const row = await rowAt(i);
      for (const key in COLUMNS) made[key][i] = COLUMNS[key].value(row);
      made.series[i] = row.series;
      for (const key of ["organ", "label", "series"]) {
        const value = made[key][i];
        if (!interned.has(value)) interned.set(value, value);
        made[key][i] = interned.get(value);
      }
      if (row.error != null) made.organ[i] = "error";
    }
  }
  return columns = made;
}

// The address contains the view (#sort=organ_prob&dir=desc&page=2), so that Back and bookmarks work.
function view() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const sort = Object.hasOwn(COLUMNS, hash.get("sort")) ? hash.get("sort") : "index";
  const size = Number(hash.get("size")), scan = parseInt(hash.get("scan"));
  const positive = key => Math.max(1, parseInt(hash.get(key)) || 1);
  return { sort, desc: hash.get("dir") === "desc", page: positive("page"), size: SIZES.includes(size) ? size : 50,
    organ: hash.get("organ"), label: hash.get("label"), series: hash.get("series"), v: positive("v"),
    q: hash.get("q") ?? "", scan: scan >= 0 && scan < TOTAL ? scan : null };
}
function go(change, replace = false) {
  const next = { ...view(), ...change }, hash = new URLSearchParams();
  if (next.sort !== "index") hash.set("sort", next.sort);
  if (next.desc) hash.set("dir", "desc");
  if (next.page > 1) hash.set("page", next.page);
  if (next.size !== 50) hash.set("size", next.size);
  if (next.v > 1) hash.set("v", next.v);
  for (const key of ["organ", "label", "series", "q", "scan"])
    if (next[key] !== null && next[key] !== "") hash.set(key, next[key]);
  history[replace ? "replaceState" : "pushState"](null, "", `#${hash}`);
  show();
}

const compare = new Intl.Collator("en", { numeric: true }).compare;
let order = null, orderKey = "";  // indices of the selected scans; null means all, in input order
async function makeOrder({ sort, desc, organ, label, series, q }) {
  const key = JSON.stringify([sort, desc, organ, label, series, q]);
  if (key === orderKey) return;
  let made = null;
  if (sort !== "index" || desc || organ || label || series || q) {
    const all = await allColumns(), values = all[sort], text = q.toLowerCase();
    made = Array.from(values.keys()).filter(i => (!organ || all.organ[i] === organ)
      && (!label || all.label[i] === label) && (!series || all.series[i] === series)
      && (!text || all.scan[i].toLowerCase().includes(text)));
    const sign = desc ? -1 : 1, difference = COLUMNS[sort].text ? compare : (a, b) => a - b;
    made.sort((a, b) => values[a] == null || values[b] == null
      ? (values[a] == null) - (values[b] == null) || a - b  // unknown values last
      : sign * difference(values[a], values[b]) || a - b);
  }
  order = made;
  orderKey = key;
}

// Cells of the table.
function organCell(row) {
  if (row.organ == null) return quiet("unknown");
  if (row.organ === "unsupported") return el("b", {}, row.organ);
  return el("div", {}, bars([[row.organ, row.organ_prob]], row.organ), organUncertain(row));
}
function labelCell(row) {
  const confidence = row.confidence == null ? null : el("div", { className: "small", title: CONFIDENCE },
    quiet(`confidence ${percent(row.confidence)}`),
    row.review ? el("b", { className: "bad" }, " \u2691 review") : null);
  const label = row.label_probs ? bars(Object.entries(row.label_probs), row.label)
    : row.label != null ? el("b", {}, row.label) : quiet(row.reason ?? "no label");
  return el("div", {}, label, labelSet(row), confidence);
}
function lesionsCell(row) {
  if (row.lesions == null) return quiet("\u2013");
  return row.lesions === 0 ? "no lesion" : el("span", { className: "whole" }, count(row.lesions, "lesion"));
}
function sizeCell(row) {
  if (!row.lesions) return "";
  const both = (px, mm, unit) => [px == null ? null : `${number(px, digitsOf(px))} px`,
    mm == null ? null : `${number(mm, digitsOf(mm))} ${unit}`].filter(Boolean).join(", ");
  const longest = both(row.diameter_px, row.diameter_mm, "mm");
  return el("span", { className: "whole" }, both(row.lesion_area_px, row.lesion_area_mm2, "mm\u00b2"),
    longest ? el("span", { className: "quiet area", title: "Longest diameter of the largest lesion" },
      `\u2300 ${longest}`) : null);
}
function nameCell(row) {
  const cut = row.scan.lastIndexOf("/") + 1, folder = row.scan.slice(0, cut);
  const frame = row.frame == null ? null : el("div", { className: "quiet small" }, `frame ${row.frame}`);
  return el("div", {}, el("bdi", { className: "name" }, row.scan.slice(cut)),
    folder ? el("div", { className: "quiet small" }, el("bdi", {}, folder)) : null, frame);
}
function tableRow(row) {
  const open = { id: `scan${row.index}`, title: "Show details", ariaLabel: `Show details of ${row.scan}`,
    onclick: () => go({ scan: row.index }) };
  const thumb = row.overlay
    ? el("button", { className: "thumb", ...open },
      el("img", { src: row.overlay, alt: "", loading: "lazy", decoding: "async" }))
    : el("button", { className: "thumb none", ...open }, "no image");
  const cells = row.error != null
    ? [el("td", { colSpan: 4, className: "bad" }, `Error: ${row.error}`)]
    : [organCell, labelCell, lesionsCell, sizeCell].map(cell => el("td", {}, cell(row)));
  return el("tr", {}, el("td", { className: "n" }, String(row.index)), el("td", { className: "image" }, thumb),
    el("td", {}, nameCell(row)), ...cells);
}

function pager({ page, size }, total) {
  const pages = Math.max(1, Math.ceil(total / size));
  const to = (text, target, label) => el("button", { ariaLabel: label,
    disabled: target < 1 || target > pages || target === page,
    onclick: () => { go({ page: target }); scrollTo(0, 0); } }, text);
  const sizes = el("select", { ariaLabel: "Scans per page",
    onchange: event => go({ size: Number(event.target.value), page: 1 }) },
    ...SIZES.map(n => el("option", { value: n, selected: n === size }, `${n} per page`)));
  if (pages === 1) return [sizes];
  return [to("\u00ab", 1, "First page"), to("\u2039", page - 1, "Previous page"), el("span", {}, `${page} / ${pages}`),
    to("\u203a", page + 1, "Next page"), to("\u00bb", pages, "Last page"), sizes];
}
function heads({ sort, desc }) {
  const head = key => el("button", { className: key === sort ? "by" : "",
    title: `Sort by ${COLUMNS[key].title.toLowerCase()}${COLUMNS[key].about ? `. ${COLUMNS[key].about}` : ""}`,
    onclick: () => go({ sort: key, desc: key === sort ? !desc : !!COLUMNS[key].down, page: 1 }) },
    COLUMNS[key].short ?? COLUMNS[key].title);
  return HEADS.map(keys => el("th", { scope: "col",
    ...(keys.includes(sort) ? { ariaSort: desc ? "descending" : "ascending" } : {}) }, ...keys.map(head)));
}

// Volumes: a table above the scans. Selecting a volume shows only its slices.
const VOLUME_HEADS = ["Volume", "Organ", "Label", "Slices", "With lesions", "Lesion volume", "Longest diameter",
  "Notes"];
function volumeRow(volume, series) {
  const selected = volume.series === series, none = () => quiet("\u2013");
  const note = (...content) => el("div", { className: "quiet small" }, ...content);
  const slice = index => el("a", { href: `#series=${volume.series}&scan=${index}` }, String(index));
  const labels = Object.entries(volume.labels).map(([name, n]) => `${name} ${n}`).join(", ");
  const folder = volume.scan.replace(/[^/]+$/, ""), distance = volume.spacing_mm[0];
  const name = volume.kind === "series" ? folder || volume.scan : volume.scan;
  const segmentation = path => el("div", {}, el("a", { href: path.split("/").map(encodeURIComponent).join("/"),
    download: "" }, path.endsWith(".nii.gz") ? "segmentation.nii.gz" : "segmentation.dcm"));
  const cells = [
    [el("button", { className: "name", ariaPressed: selected, title: "Show only its slices",
      onclick: () => go({ series: selected ? null : volume.series, page: 1 }) }, el("bdi", {}, name)),
      note(`${volume.kind ?? "unread"} ${volume.series}`)],
    [volume.organ ?? none()],
    [el("b", {}, volume.label ?? "\u2013"), note(labels ? `confident slices: ${labels}` : "",
      volume.review ? el("span", { className: "bad" }, ` \u2691 review ${volume.review}`) : null)],
    [String(volume.slices), distance == null ? null : note(`${number(distance, 3)} mm apart`),
      volume.errors ? el("div", { className: "bad" }, count(volume.errors, "error")) : null],
    [String(volume.lesion_slices), volume.first == null ? null
      : note("# ", slice(volume.first), " to ", slice(volume.last), ", largest ", slice(volume.largest))],
    [volume.lesion_volume_mm3 == null ? none() : `${number(volume.lesion_volume_mm3 / 1000, 2)} ml`],
    [volume.diameter_mm == null ? none() : `${number(volume.diameter_mm, digitsOf(volume.diameter_mm))} mm`,
      volume.longest == null ? null : note("# ", slice(volume.longest))],
    [...volume.segmentations.map(segmentation), ...volume.notes.map(text => note(text))]];
  return el("tr", { className: selected ? "by" : "" }, ...cells.map((content, i) => {
    const cell = el("td", {}, ...content);
    cell.dataset.head = VOLUME_HEADS[i];
    return cell;
  }));
}
async function showVolumes({ series, v }) {
  if (!VOLUMES) return;
  const pages = Math.ceil(VOLUMES / VOLUMES_SHOWN), page = Math.min(v, pages), first = (page - 1) * VOLUMES_SHOWN;
  const rows = [];
  for (let i = first; i < Math.min(first + VOLUMES_SHOWN, VOLUMES); i++) rows.push(await volumeAt(i));
  const to = (text, target, label) => el("button", { ariaLabel: label, disabled: target < 1 || target > pages,
    onclick: () => go({ v: target }) }, text);
  $("volumes").hidden = $("volumelines").hidden = false;
  replaceChildren($("volumes"), el("summary", {}, count(VOLUMES, "volume")),
    el("table", {}, el("thead", {}, el("tr", {}, ...VOLUME_HEADS.map(head => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map(volume => volumeRow(volume, series)))),
    pages > 1 ? el("div", { className: "tools" }, to("\u2039", page - 1, "Previous volumes"),
      el("span", {}, `${page} / ${pages}`), to("\u203a", page + 1, "Next volumes")) : "");
}
function chips({ organ, label, series }) {
  const chip = (name, n, change, pressed) => el("button", { className: "chip", ariaPressed: pressed,
    onclick: () => go({ page: 1, ...change }) }, name, n == null ? null : el("b", {}, n.toLocaleString("en")));
  const filters = (counts, key, value) => Object.entries(run.counts[counts]).filter(([, n]) => n)
    .map(([name, n]) => chip(name, n, { [key]: name === value ? null : name }, name === value));
  const errors = run.counts.errors, only = organ === "error";
  return [chip("all", TOTAL, { organ: null, label: null, series: null, q: "" }, !organ && !label && !series),
    series ? chip(`volume ${series} \u00d7`, null, { series: null }, true) : null, el("span", { className: "gap" }),
    ...filters("organs", "organ", organ),
    errors ? chip("errors", errors, { organ: only ? null : "error", label: null }, only) : null,
    el("span", { className: "gap" }), ...filters("labels", "label", label)].filter(Boolean);
}

// The dialog with the details of one scan.
async function showDetail(index, position, total) {
  const dialog = $("detail");
  if (index == null) {
    if (dialog.open) { dialog.close(); $(`scan${dialog.dataset.scan}`)?.focus(); }
    return;
  }
  const row = await rowAt(index);
  const step = (text, by, label) => el("button", { ariaLabel: label,
    disabled: position + by < 0 || position + by >= total, onclick: () => stepBy(by) }, text);
  const link = (href, text) => el("div", {}, el("a", { href, target: "_blank", rel: "noopener" }, text));
  const boxes = (row.boxes ?? []).map(box => el("div", {}, box.join(", ")));
  if (row.lesions > boxes.length) boxes.push(quiet(`and ${row.lesions - boxes.length} more in findings.jsonl`));
  const facts = row.error != null ? fact("Error", el("span", { className: "bad" }, row.error)) : [
    ...fact("Organ", organCell(row)),
    ...(row.reason ? fact("Reason", row.reason) : []),
    ...(row.notes ? fact("Notes", ...row.notes.map(note => el("div", {}, note))) : []),
    ...(row.reason ? [] : fact("Label", labelCell(row))),
    ...fact("Lesions", lesionsCell(row)),
    ...(row.lesions ? fact("Area, longest diameter", sizeCell(row), outerArea(row)) : []),
    ...(row.position_mm == null ? [] : fact("Position", `${number(row.position_mm, 2)} mm along the slice normal`)),
    ...(boxes.length ? fact("Boxes: x, y, width, height", ...boxes) : [])];
  replaceChildren(dialog,
    el("div", { className: "tools" }, step("\u2039", -1, "Previous scan"), step("\u203a", 1, "Next scan"),
      quiet(`${(position + 1).toLocaleString("en")} of ${total.toLocaleString("en")}`),
      el("button", { className: "end", onclick: () => go({ scan: null }) }, "Close")),
    el("div", { className: "detail" },
      el("figure", {}, row.overlay ? el("img", { src: row.overlay, alt: "Scan with lesions outlined" })
        : quiet("no image")),
      el("dl", {}, ...fact(`Scan ${row.index}`, nameCell(row)), ...facts,
        ...(row.overlay ? fact("Files", link(row.overlay, "overlay"), row.mask ? link(row.mask, "mask") : null) : []),
        ...fact("Notice", $("notice").textContent))));
  if (!dialog.open) dialog.showModal();
  dialog.dataset.scan = index;
}
const positionOf = index => order ? order.indexOf(index) : index;
function stepBy(by) {
  const now = view(), next = positionOf(now.scan) + by, total = order ? order.length : TOTAL;
  if (next < 0 || next >= total) return;
  go({ scan: order ? order[next] : next, page: Math.floor(next / now.size) + 1 }, true);
}

let latest = 0, shown = "";
async function show() {
  const turn = ++latest, now = view();
  try {
    await makeOrder(now);
    const total = order ? order.length : TOTAL;
    now.page = Math.min(now.page, Math.max(1, Math.ceil(total / now.size)));
    const first = (now.page - 1) * now.size, last = Math.min(first + now.size, total), rows = [];
    for (let i = first; i < last; i++) rows.push(await rowAt(order ? order[i] : i));
    if (turn !== latest) return;  // a newer call has started
    const key = JSON.stringify([orderKey, now.page, now.size]);
    if (shown !== key) $("rows").replaceChildren(...rows.map(tableRow));
    shown = key;
    await showVolumes(now);
    if (turn !== latest) return;
    replaceChildren($("heads"), ...heads(now));
    replaceChildren($("chips"), ...chips(now));
    const range = `${(first + 1).toLocaleString("en")}\u2013${last.toLocaleString("en")}`;
    $("state").textContent = total ? `${range} of ${count(total, "scan")}` : "no scans";
    for (const id of ["pager", "pager2"]) replaceChildren($(id), ...pager(now, total));
    $("sort").value = now.sort;
    if ($("q") !== document.activeElement) $("q").value = now.q;
    await showDetail(now.scan, positionOf(now.scan), total);
  } catch (error) {
    $("state").textContent = error.message;
  }
}

function setUp() {
  const status = { complete: "", running: "still running, or killed, when this page was written; reload to update it",
    stopped: `stopped before the end: ${run.error}` }[run.status];
  const facts = [count(TOTAL, "scan"), count(run.counts.lesions, "outlined lesion"), count(run.counts.errors, "error"),
    run.operating_point ? `operating point ${run.operating_point}` : null,
    run.started.replace("T", " ").replace("+00:00", " UTC"), `mcis ${run.versions.mcis}`].filter(Boolean);
  $("about").replaceChildren(facts.join(" \u00b7 "));
  if (status) $("about").append(el("div", { className: "stopped" }, status));
  $("run").textContent = JSON.stringify(run, null, 2);
  $("sort").append(...Object.entries(COLUMNS).map(([value, { title }]) =>
    el("option", { value }, value === "index" ? "Input order" : title)));
  $("sort").onchange = event => go({ sort: event.target.value, desc: !!COLUMNS[event.target.value].down, page: 1 });
  $("reverse").onclick = () => go({ desc: !view().desc, page: 1 });
  let timer;
  $("q").oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(() => go({ q: $("q").value, page: 1 }, true), 200);
  };
  $("detail").oncancel = event => { event.preventDefault(); go({ scan: null }); };
  $("detail").onclick = event => { if (event.target === $("detail")) go({ scan: null }); };
  addEventListener("keydown", event => {
    if ($("detail").open) {
      if (event.key === "ArrowRight") stepBy(1);
      else if (event.key === "ArrowLeft") stepBy(-1);
    } else if (event.key === "/" && document.activeElement !== $("q")) { event.preventDefault(); $("q").focus(); }
  });
  addEventListener("popstate", show);
  show();
}
setUp();
