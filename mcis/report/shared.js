"use strict";
// Functions of both pages: that of a report, and that of `mcis serve`.
// File names, labels and errors are untrusted: they enter the page only as text nodes, never as markup.
const $ = id => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}
const quiet = text => el("span", { className: "quiet" }, text);
const percent = p => p > 0.9995 && p < 1 ? "> 99.9 %" : p < 0.0005 && p > 0 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
const number = (n, digits = 1) => n.toLocaleString("en", { maximumFractionDigits: digits });
const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const fact = (name, ...content) => [el("dt", {}, name), el("dd", {}, ...content)];

// A bar per pair of name and probability; null is a name without a bar.
function bars(pairs, top) {
  return el("div", { className: "bars" }, ...pairs.flatMap(([name, p]) => {
    const className = name === top ? "top" : "";
    if (p == null) return [el("span", { className }, name), el("span"), el("span")];
    const fill = el("i");
    fill.style.width = `${100 * Math.min(1, Math.max(0, p))}%`;
    const bar = el("div", { className: `bar ${className}` }, fill);
    return [el("span", { className }, name), bar, el("span", { className }, percent(p))];
  }));
}

// What remains possible, by limits that `mcis calibrate` fitted; nothing for weights without them.
const SET = "For nine of ten scans like those of the calibration the true class is among these; a new source may differ";
const OUTER = "A dashed outline that misses less of a lesion and holds more that is none";
function labelSet(row) {
  if (!row.label_set) return null;
  const text = row.label_set.length > 1 ? `possible: ${row.label_set.join(", ")}`
    : `label set of nine in ten: ${row.label_set[0]} alone`;
  return el("div", { className: "quiet small", title: SET }, text);
}
const UNCERTAIN = "The router's probability is below that of a certain organ: check that the scan is of this organ";
function organUncertain(row) {
  return row.organ_certain === false ? el("div", { className: "bad small", title: UNCERTAIN }, "organ uncertain") : null;
}
function outerArea(row) {
  return row.outer_area_px == null ? null : el("div", { className: "quiet small", title: OUTER },
    `Outer outline: ${number(row.outer_area_px, 0)} px, ${percent(row.outer_area_share)} of the scan`);
}
