// Points and boxes on the page of `kbc ui`: the text fields hold the state, this script turns clicks and drags on the
// images into text and draws the text over the images, and magnifies what is under the pointer, for small objects.
// Points have (0, 0) at the centre of the top-left pixel; boxes are pixel edges.
(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  let drag = null; // {x, y, to: {x, y}} in the target's pixel edges

  const image = (id) => document.querySelector(`#${id} img`);
  const field = (id) => document.querySelector(`#${id} textarea, #${id} input`);

  // Where an image's pixels are on the screen; it is letterboxed inside its element.
  function placed(img) {
    if (!img || !img.naturalWidth) return null;
    const r = img.getBoundingClientRect();
    const style = getComputedStyle(img).objectFit;
    let scale = Math.min(r.width / img.naturalWidth, r.height / img.naturalHeight);
    if (style === "scale-down") scale = Math.min(scale, 1);
    if (style === "fill" || !style) return { x: r.left, y: r.top, sx: r.width / img.naturalWidth, sy: r.height / img.naturalHeight, img };
    const x = r.left + (r.width - img.naturalWidth * scale) / 2;
    const y = r.top + (r.height - img.naturalHeight * scale) / 2;
    return { x, y, sx: scale, sy: scale, img };
  }

  // Pixel-edge coordinates of a pointer event, or null outside the image.
  function edge(event, at, clamp) {
    let x = (event.clientX - at.x) / at.sx, y = (event.clientY - at.y) / at.sy;
    const w = at.img.naturalWidth, h = at.img.naturalHeight;
    if (clamp) return { x: Math.min(Math.max(x, 0), w), y: Math.min(Math.max(y, 0), h) };
    return x < 0 || y < 0 || x >= w || y >= h ? null : { x, y };
  }

  function write(id, text) {
    const input = field(id);
    Object.getOwnPropertyDescriptor(Object.getPrototypeOf(input), "value").set.call(input, text);
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  const over = (event, id) => event.target.closest && event.target.closest(`#${id}`) && !event.target.closest("button[aria-label], input, label");

  document.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (over(event, "kbc-source")) {
      const at = placed(image("kbc-source")), p = at && edge(event, at, false);
      if (!p) return;
      event.preventDefault();
      const before = field("kbc-points").value.trim();
      write("kbc-points", `${before} ${(p.x - 0.5).toFixed(1)},${(p.y - 0.5).toFixed(1)}`.trim());
    } else if (over(event, "kbc-target")) {
      const at = placed(image("kbc-target")), p = at && edge(event, at, false);
      if (!p) return;
      event.preventDefault();
      drag = { ...p, to: p };
    }
  }, true);

  document.addEventListener("pointermove", (event) => {
    const at = drag && placed(image("kbc-target"));
    if (at) drag.to = edge(event, at, true);
  }, true);

  document.addEventListener("pointerup", () => {
    if (!drag) return;
    const { x, y, to } = drag;
    drag = null;
    if (Math.abs(to.x - x) < 2 || Math.abs(to.y - y) < 2) { write("kbc-box", ""); return; } // a click takes the box away
    write("kbc-box", [Math.min(x, to.x), Math.min(y, to.y), Math.max(x, to.x), Math.max(y, to.y)].map((v) => v.toFixed(1)).join(","));
  }, true);

  document.addEventListener("dragstart", (event) => {
    if (over(event, "kbc-source") || over(event, "kbc-target")) event.preventDefault();
  }, true);

  function node(name, attributes, text) {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const numbers = (id) => { const input = field(id); return input ? (input.value.match(/[-+]?\d*\.?\d+/g) || []).map(Number) : []; };
  let drawn = "";

  // A magnifier in the corner away from the pointer: ZOOM screen pixels per image pixel, a cross at the pointer.
  const ZOOM = 4, SIDE = 168;
  const lens = document.createElement("div");
  lens.style.cssText = `position:fixed;width:${SIDE}px;height:${SIDE}px;border:2px solid white;outline:1px solid black;border-radius:6px;pointer-events:none;z-index:50;display:none;background-repeat:no-repeat;background-color:#888;image-rendering:pixelated`;
  lens.innerHTML = `<svg width="${SIDE}" height="${SIDE}"><path d="M${SIDE / 2} 0V${SIDE}M0 ${SIDE / 2}H${SIDE}" stroke="black" stroke-width="3" opacity=".5"/><path d="M${SIDE / 2} 0V${SIDE}M0 ${SIDE / 2}H${SIDE}" stroke="white"/></svg>`;

  document.addEventListener("pointermove", (event) => {
    const id = ["kbc-source", "kbc-target"].find((name) => over(event, name));
    const at = id && placed(image(id)), p = at && edge(event, at, false);
    lens.style.display = p ? "block" : "none";
    if (!p) return;
    if (!lens.isConnected) document.body.append(lens);
    const right = at.x + at.img.naturalWidth * at.sx, isLeft = event.clientX < (at.x + right) / 2;
    Object.assign(lens.style, {
      left: `${isLeft ? right - SIDE - 8 : at.x + 4}px`, top: `${at.y + 4}px`,
      backgroundImage: `url("${at.img.src}")`,
      backgroundSize: `${at.img.naturalWidth * ZOOM}px ${at.img.naturalHeight * ZOOM}px`,
      backgroundPosition: `${SIDE / 2 - p.x * ZOOM}px ${SIDE / 2 - p.y * ZOOM}px`,
    });
  }, true);

  const svg = node("svg", { style: "position:fixed;inset:0;width:100vw;height:100vh;pointer-events:none;z-index:40" });

  function redraw() {
    requestAnimationFrame(redraw);
    const source = placed(image("kbc-source")), target = placed(image("kbc-target"));
    const p = numbers("kbc-points");
    const b = drag ? [Math.min(drag.x, drag.to.x), Math.min(drag.y, drag.to.y), Math.max(drag.x, drag.to.x), Math.max(drag.y, drag.to.y)] : numbers("kbc-box");
    const key = JSON.stringify([source && [source.x, source.y, source.sx], target && [target.x, target.y, target.sx], p, b]);
    if (key === drawn) return;
    drawn = key;
    if (!svg.isConnected) document.body.append(svg);
    svg.replaceChildren();
    if (source) for (let i = 0; i + 1 < p.length; i += 2) {
      const x = source.x + (p[i] + 0.5) * source.sx, y = source.y + (p[i + 1] + 0.5) * source.sy;
      svg.append(node("circle", { cx: x, cy: y, r: 3.5, fill: "#009E73", stroke: "white", "stroke-width": 1.2 }));
      svg.append(node("text", { x: x + 4, y: y - 4, fill: "white", stroke: "black", "stroke-width": 2.5, "paint-order": "stroke", "font-size": 10, "font-family": "sans-serif" }, i / 2));
    }
    if (target && b.length === 4) {
      const at = { x: target.x + b[0] * target.sx, y: target.y + b[1] * target.sy, width: (b[2] - b[0]) * target.sx, height: (b[3] - b[1]) * target.sy, fill: "none" };
      if (at.width >= 0 && at.height >= 0) {
        svg.append(node("rect", { ...at, stroke: "black", "stroke-width": 3 }));
        svg.append(node("rect", { ...at, stroke: "#F0E442", "stroke-width": 1.6, "stroke-dasharray": "6 3" }));
      }
    }
  }
  redraw();
})();
