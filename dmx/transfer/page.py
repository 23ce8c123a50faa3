"""The page around the picture of a transfer: style, script, places for the text."""

ACTIONS = {
    "copied": "all of the layer comes from the source",
    "sliced": "a part of the channels corresponds; what does not stays as initialized",
    "adapted": "changed by a rule on the way",
    "initialized": "nothing is received",
}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@title@</title>
<style>
:root { --copied: #16794f; --sliced: #2463b4; --adapted: #a4560c; --initialized: #8a8f98; --ink: #1d2127; }
body { margin: 0; padding: 20px 24px 120px; font: 14px/1.45 system-ui, sans-serif; color: var(--ink);
  background: #fff; }
h1 { font-size: 19px; margin: 0 0 4px; overflow-wrap: anywhere; }
p { margin: 4px 0; max-width: 110ch; overflow-wrap: anywhere; }
.warning { border-left: 4px solid #d97706; background: #fff7e6; padding: 5px 10px; }
.total { display: flex; align-items: center; gap: 12px; margin: 8px 0; }
.total b { font-size: 16px; }
.meter { width: 260px; height: 10px; border-radius: 5px; background: #e4e7eb; overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--copied); }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 26px; padding: 0; margin: 12px 0 6px; font-size: 13px; }
li i { display: inline-block; width: 22px; height: 10px; border-radius: 2px; margin-right: 6px; }
li em { color: #5c6470; font-style: normal; }
.copied i { background: var(--copied); }
.sliced i { background: var(--sliced); }
.adapted i { background: var(--adapted); }
.initialized i { border: 1.5px dashed var(--initialized); box-sizing: border-box; }
.scroll { overflow-x: auto; }
/* A narrow frame shows all of the picture, smaller; the box beside the legend gives it its size back. */
#picture { max-width: 100%; height: auto; }
#full:checked ~ .scroll #picture { max-width: none; }
.full { font-size: 13px; color: #5c6470; cursor: pointer; }
@media (max-width: 700px) { body { padding: 12px 12px 120px; } #details { padding: 8px 12px; } }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); pointer-events: none; }
svg .network { font-size: 14px; font-weight: 600; }
svg .network tspan { fill: #5c6470; font-weight: 400; }
svg .pathway { text-anchor: middle; fill: #5c6470; font-size: 12px; }
svg .size { fill: #5c6470; font-size: 11px; }
.line { fill: none; stroke-width: 1.8; opacity: .75; }
.line.copied { stroke: var(--copied); }
.line.sliced { stroke: var(--sliced); }
.line.adapted { stroke: var(--adapted); }
.box { cursor: pointer; outline: none; }
.shape { fill: #fff; stroke: #9aa2ad; stroke-width: 1.4; }
.box.copied .shape { stroke: var(--copied); fill: #e8f5ee; }
.box.sliced .shape { stroke: var(--sliced); fill: #e9f1fb; }
.box.adapted .shape { stroke: var(--adapted); fill: #fdf0e2; }
.box.initialized .shape { stroke: var(--initialized); stroke-dasharray: 5 3; }
.box.unused .shape { stroke-dasharray: 2 3; fill: #f6f7f8; }
.box.unused text { fill: #8a8f98; }
.share { rx: 2px; }
.box.copied .share { fill: var(--copied); }
.box.sliced .share { fill: var(--sliced); }
.box.adapted .share { fill: var(--adapted); }
.chosen .line { opacity: .1; }
.chosen .line.on { opacity: 1; stroke-width: 3.2; }
.chosen .box { opacity: .35; }
.chosen .box.on { opacity: 1; }
.box.on .shape { stroke-width: 2.6; }
#details { position: fixed; left: 0; right: 0; bottom: 0; max-height: 34vh; overflow: auto;
  margin: 0; padding: 10px 24px; background: #1d2127; color: #f1f3f5;
  font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
details { margin-top: 18px; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; font-size: 12px; margin-top: 8px; }
th, td { text-align: left; padding: 2px 10px 2px 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
tr.copied td:nth-child(3) { color: var(--copied); }
tr.sliced td:nth-child(3) { color: var(--sliced); }
tr.adapted td:nth-child(3) { color: var(--adapted); }
tr.initialized td:nth-child(3), tr.unused td { color: #737a85; }
</style>
</head>
<body>
<h1>@title@</h1>
<div class="total"><b>@received@ of @parameters@ parameters received</b>
<span class="meter"><i style="width:@bar@%"></i></span><span>@share@</span><span>@lost@</span></div>
@remarks@
<ul>@legend@</ul>
<input type="checkbox" id="full"> <label class="full" for="full">full size (scrolls in a narrow window)</label>
<div class="scroll">
<svg id="picture" width="@width@" height="@height@" viewBox="0 0 @width@ @height@" role="img" aria-label="@title@">
@drawing@
</svg>
</div>
<details><summary>All tensors</summary><div class="scroll"><table>@table@</table></div></details>
<pre id="details">Point at a layer to see what it receives; click to keep it, click again to let go.</pre>
<script id="data" type="application/json">@data@</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent);
const picture = document.getElementById("picture");
const details = document.getElementById("details");
const hint = details.textContent;
const boxes = new Map([...picture.querySelectorAll(".box")].map((box) => [box.dataset.key, box]));
const lines = new Map([...picture.querySelectorAll(".line")].map((path) => [path.dataset.line, path]));
let kept = null;
function show(key) {
  for (const element of picture.querySelectorAll(".on")) element.classList.remove("on");
  picture.classList.toggle("chosen", key !== null);
  details.textContent = key === null ? hint : data.texts[key].join("\\n");
  if (key === null) return;
  boxes.get(key).classList.add("on");
  for (const number of data.links[key] || []) {
    const path = lines.get(String(number));
    if (!path) continue;
    path.classList.add("on");
    for (const end of data.ends[number]) boxes.get(end).classList.add("on");
  }
}
for (const [key, box] of boxes) {
  box.addEventListener("mouseenter", () => kept === null && show(key));
  box.addEventListener("mouseleave", () => kept === null && show(null));
  box.addEventListener("focus", () => kept === null && show(key));
  box.addEventListener("blur", () => kept === null && show(null));
  box.addEventListener("click", () => { kept = kept === key ? null : key; show(kept === null ? key : kept); });
}
</script>
</body>
</html>
"""
