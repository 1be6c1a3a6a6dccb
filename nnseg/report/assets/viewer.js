// The page's behaviour: sorting of tables, and the viewer of cases.
//
// A case is a script file that calls nnsegReport.take. Two backends draw it: `Slices`, three planes
// on canvases of ours, and `Volume`, planes and a 3D view by NiiVue where that and WebGL 2 are at
// hand. Both are shown the same two arrays of a case: the image's grey levels and the `overlay`,
// one colour index a voxel, which follows from what the user wants to see.
"use strict";

const nnsegReport = (() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const loading = new Map(); // number of a case to what settles its promise
  const loaded = new Map(); // number of a case to its promise, the latest last
  const KEPT = 6; // cases in memory
  const MISSED = 250, SPURIOUS = 251, OTHER = 252, OUTLINE = 128; // colour indices; the rest: labels
  const TOP = 120; // colour indices of labels: a multiple of the 12 colours, and outlines fit behind

  const byId = (id) => document.getElementById(id);

  // ---- data -------------------------------------------------------------------------------------

  function loadScript(path) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = path;
      script.onload = () => { script.remove(); resolve(); };
      script.onerror = () => reject(new Error("could not be loaded; keep the report's folder whole"));
      document.head.append(script);
    });
  }

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function build(raw) {
    const channels = await Promise.all(
      raw.channels.map(async (c) => ({ ...c, levels: await unpack(c.data), data: null })));
    const positions = async (data) => {
      const bytes = await unpack(data);
      return raw.bytes === 2 ? new Uint16Array(bytes.buffer) : bytes;
    };
    const maps = await Promise.all(
      raw.maps.map(async (m) => ({ name: m.name, map: await positions(m.data) })));
    return { ...raw, channels, maps, reference: raw.reference && await positions(raw.reference) };
  }

  function take(number, raw) {
    loading.get(number)?.(build(raw));
    loading.delete(number);
  }

  function loadCase(number) {
    let found = loaded.get(number);
    if (!found) {
      found = new Promise((resolve, reject) => {
        loading.set(number, resolve);
        loadScript(facts.folder + "/" + facts.cases[number].file).catch(reject);
      });
      found.catch(() => loaded.delete(number));
    }
    loaded.delete(number);
    loaded.set(number, found);
    if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
    return found;
  }

  // ---- what is seen -----------------------------------------------------------------------------

  const state = {
    number: -1, item: null, position: [0, 0, 0], channel: 0, low: 0, high: 255,
    mode: "both", opacity: 0.5, hidden: new Set(), shown: true,
  };
  let colours = []; // [red, green, blue] by colour index

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => {
      const hex = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    };
    const palette = Array.from({ length: 12 }, (_, i) => rgb("--label" + i));
    colours = Array.from({ length: 256 }, (_, i) => palette[((i % OUTLINE) + 11) % 12]);
    for (let i = OUTLINE + 1; i < MISSED; i++) colours[i] = colours[i].map((c) => Math.round(c + (255 - c) * 0.35));
    colours[0] = [0, 0, 0];
    colours[MISSED] = rgb("--missed");
    colours[SPURIOUS] = rgb("--spurious");
    colours[OTHER] = rgb("--confused");
  }

  // The colour index of every voxel, of what the user wants to see.
  function overlayOf(item, outlined = true) {
    const { reference, other } = partsOf(item);
    const size = item.shape[0] * item.shape[1] * item.shape[2];
    const out = new Uint8Array(size);
    if (!state.shown) return out;
    const seen = (v) => (state.hidden.has(v) ? 0 : v);
    const one = state.mode === "reference" ? reference ?? other : other ?? reference;
    if (state.mode === "disagreement" && reference && other) {
      for (let i = 0; i < size; i++) out[i] = mistake(seen(reference[i]), seen(other[i]));
      return out;
    }
    if (one) for (let i = 0; i < size; i++) out[i] = colourOf(seen(one[i]));
    if (outlined && state.mode === "both" && reference && other) outline(item.shape, reference, seen, out);
    return out;
  }

  // Labels are compared as they are; only for their colours they are folded.
  function mistake(r, p) { return r === p ? 0 : p === 0 ? MISSED : r === 0 ? SPURIOUS : OTHER; }
  function colourOf(v) { return v && (v - 1) % TOP + 1; }

  // Mark the voxels of `map` that have a neighbour of another label in their axial plane.
  function outline([nx, ny, nz], map, seen, out) {
    for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) {
      const v = seen(map[i]);
      if (v && (x === 0 || map[i - 1] !== map[i] || x === nx - 1 || map[i + 1] !== map[i] ||
        y === 0 || map[i - nx] !== map[i] || y === ny - 1 || map[i + nx] !== map[i])) {
        out[i] = colourOf(v) + OUTLINE;
      }
    }
  }

  function partsOf(item) {
    const chosen = item.maps[Number(byId("map").value)] ?? item.maps[0];
    return { reference: item.reference, other: chosen?.map ?? null };
  }

  // The voxel of the file, (x, y, z), that stands for the one at a position.
  function voxelOf(item, position) {
    const found = [0, 0, 0];
    item.file.forEach(({ axis, first, last, flipped }, i) => {
      const block = flipped ? item.shape[i] - 1 - position[i] : position[i];
      found[axis] = Math.min(first + block * item.every[i] + Math.floor(item.every[i] / 2), last);
    });
    return found;
  }

  // What the slices along an axis are called, and which one of the file is at the position.
  function sliceName(item, { name, through }) {
    const { axis } = item.file[through];
    const slice = `${"xyz"[axis]} ${voxelOf(item, state.position)[axis]}`;
    return item.anatomical ? `${name}, ${slice}` : slice;
  }

  // ---- slices: three planes on canvases of ours -------------------------------------------------

  const PLANES = [ // across, down, through: axes x 0, y 1, z 2; letters at left, right, top, bottom
    { name: "axial", across: 0, down: 1, through: 2, ends: ["R", "L", "A", "P"] },
    { name: "coronal", across: 0, down: 2, through: 1, ends: ["R", "L", "S", "I"] },
    { name: "sagittal", across: 1, down: 2, through: 0, ends: ["A", "P", "S", "I"] },
  ];

  class Slices {
    constructor(host) {
      this.host = host;
      this.panes = PLANES.map((plane) => {
        const canvas = document.createElement("canvas");
        canvas.tabIndex = 0;
        canvas.setAttribute("role", "img");
        const label = document.createElement("span");
        const figure = document.createElement("div");
        figure.className = "pane";
        figure.append(canvas, label);
        host.append(figure);
        const pane = { plane, canvas, label, figure };
        canvas.addEventListener("wheel", (event) => {
          event.preventDefault();
          move(plane.through, event.deltaY > 0 ? -1 : 1);
        }, { passive: false });
        const point = (event) => { if (event.buttons & 1) this.point(pane, event); };
        canvas.addEventListener("pointerdown", (event) => {
          canvas.setPointerCapture(event.pointerId);
          point(event);
        });
        canvas.addEventListener("pointermove", point);
        return pane;
      });
      this.scratch = document.createElement("canvas");
      this.observer = new ResizeObserver(() => this.draw());
      this.observer.observe(host);
    }

    async show(item) {
      this.item = item;
      const flat = item.shape[2] === 1;
      this.panes.forEach(({ figure, plane }) => { figure.hidden = flat && plane.name !== "axial"; });
      this.host.classList.toggle("flat", flat);
      this.refresh();
    }

    refresh() {
      if (!this.item) return;
      this.overlay = overlayOf(this.item);
      this.draw();
    }

    draw() { if (this.item) this.panes.forEach((pane) => { if (!pane.figure.hidden) this.drawPane(pane); }); }

    // Screen pixels run from the patient's right to the left and from the head down, as in radiology;
    // what does not tell its directions is shown as it is stored.
    flips(plane) {
      return this.item.anatomical ? [true, true] : [false, false];
    }

    point({ plane, canvas }, event) {
      const box = canvas.getBoundingClientRect();
      const [back, up] = this.flips(plane);
      const { shape } = this.item;
      const place = (share, axis, flipped) => {
        const n = shape[axis], at = Math.min(n - 1, Math.max(0, Math.floor(share * n)));
        state.position[axis] = flipped ? n - 1 - at : at;
      };
      place((event.clientX - box.left) / box.width, plane.across, back);
      place((event.clientY - box.top) / box.height, plane.down, up);
      moved();
    }

    drawPane({ plane, canvas, label, figure }) {
      const { item, overlay } = this;
      const { shape, spacing } = item;
      const { across, down, through } = plane;
      const nx = shape[across], ny = shape[down];
      const strides = [1, shape[0], shape[0] * shape[1]];
      const [back, up] = this.flips(plane);
      const levels = item.channels[state.channel]?.levels;
      const image = new ImageData(nx, ny);
      const scale = 255 / Math.max(1, state.high - state.low);
      const alpha = state.opacity;
      for (let v = 0, out = 0; v < ny; v++) {
        let at = (up ? ny - 1 - v : v) * strides[down] + state.position[through] * strides[through] +
          (back ? nx - 1 : 0) * strides[across];
        const step = (back ? -1 : 1) * strides[across];
        for (let u = 0; u < nx; u++, at += step, out += 4) {
          const grey = levels ? Math.min(255, Math.max(0, (levels[at] - state.low) * scale)) : 40;
          const code = overlay[at];
          let r = grey, g = grey, b = grey;
          if (code) {
            const [cr, cg, cb] = colours[code];
            const a = code > OUTLINE && code < MISSED ? Math.min(1, alpha + 0.4) : alpha;
            r += (cr - r) * a; g += (cg - g) * a; b += (cb - b) * a;
          }
          image.data[out] = r; image.data[out + 1] = g; image.data[out + 2] = b;
          image.data[out + 3] = 255;
        }
      }
      this.scratch.width = nx; this.scratch.height = ny;
      this.scratch.getContext("2d").putImageData(image, 0, 0);
      const wide = nx * spacing[across], high = ny * spacing[down];
      const room = [figure.clientWidth, figure.clientHeight];
      const zoom = Math.min(room[0] / wide, room[1] / high);
      const ratio = window.devicePixelRatio || 1;
      canvas.style.width = wide * zoom + "px"; canvas.style.height = high * zoom + "px";
      canvas.width = Math.max(1, Math.round(wide * zoom * ratio));
      canvas.height = Math.max(1, Math.round(high * zoom * ratio));
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(this.scratch, 0, 0, canvas.width, canvas.height);
      this.drawCross(context, canvas, plane, [back, up]);
      if (item.anatomical) drawLetters(context, canvas, plane.ends, ratio);
      label.textContent = shape[through] === 1 ? "" : sliceName(item, plane);
      canvas.setAttribute("aria-label", `slice ${sliceName(item, plane)}`);
    }

    drawCross(context, canvas, { across, down }, [back, up]) {
      const { shape } = this.item;
      const along = (axis, flipped, length) => {
        const at = state.position[axis];
        return ((flipped ? shape[axis] - 1 - at : at) + 0.5) / shape[axis] * length;
      };
      const x = along(across, back, canvas.width), y = along(down, up, canvas.height);
      context.strokeStyle = "rgba(110, 190, 255, 0.55)";
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x, 0); context.lineTo(x, canvas.height);
      context.moveTo(0, y); context.lineTo(canvas.width, y);
      context.stroke();
    }

    close() { this.observer.disconnect(); this.host.replaceChildren(); this.host.classList.remove("flat"); }
  }

  function drawLetters(context, canvas, [left, right, top, bottom], ratio) {
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.fillStyle = "rgba(255, 255, 255, 0.75)";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const edge = 9 * ratio, { width, height } = canvas;
    context.fillText(left, edge, height / 2); context.fillText(right, width - edge, height / 2);
    context.fillText(top, width / 2, edge); context.fillText(bottom, width / 2, height - edge);
  }

  // ---- volume: NiiVue ---------------------------------------------------------------------------

  // Two views of one case: the planes of the image under the overlay, and the overlay alone in 3D.
  class Volume {
    constructor(host) {
      const made = ["planes", "solid"].map((name) => {
        const pane = document.createElement("div");
        pane.className = `volume ${name}`;
        const canvas = document.createElement("canvas");
        canvas.tabIndex = 0;
        pane.append(canvas);
        host.append(pane);
        return canvas;
      });
      [this.canvas, this.solidCanvas] = made;
      this.host = host;
      host.classList.add("in3d");
    }

    async open() {
      const { Niivue } = window.niivue;
      const options = {
        backColor: [0.06, 0.07, 0.09, 1], crosshairColor: [0.43, 0.75, 1, 0.6], crosshairWidth: 0.4,
        crosshairWidthUnit: "percent", fontColor: [1, 1, 1, 0.8], isRadiologicalConvention: true,
        dragAndDropEnabled: false, logLevel: "error", isNearestInterpolation: false, sagittalNoseLeft: true,
      };
      this.planes = new Niivue({ ...options, multiplanarShowRender: 0 });
      await this.planes.attachToCanvas(this.canvas);
      this.planes.setSliceType(this.planes.sliceTypeMultiplanar);
      this.planes.onLocationChange = ({ vox }) => {
        if (!this.item || this.item !== state.item || !vox) return;
        state.position = [0, 1, 2].map((i) =>
          Math.min(this.item.shape[i] - 1, Math.max(0, Math.round(vox[i]))));
        tellPosition();
      };
      this.solid = new Niivue({ ...options, show3Dcrosshair: false });
      await this.solid.attachToCanvas(this.solidCanvas);
      this.solid.setSliceType(this.solid.sliceTypeRender);
    }

    // Nothing of a case goes into the views before all of it is there: who asks for another one
    // meanwhile gets that alone.
    async show(item) {
      const request = this.request = (this.request ?? 0) + 1;
      const { NVImage } = window.niivue;
      const make = (data, isLabels, opacity) => NVImage.loadFromUrl({
        url: toNifti(item, data, isLabels), name: isLabels ? "labels.nii" : "image.nii",
        colormap: "gray", opacity, cal_min: 0, cal_max: 255 });
      const levels = item.channels[state.channel]?.levels ??
        new Uint8Array(item.shape[0] * item.shape[1] * item.shape[2]);
      const overlay = overlayOf(item);
      const base = await make(levels, false, 1);
      const over = await make(overlay, true, state.opacity);
      const body = await make(overlayOf(item, false), true, 1);
      if (request !== this.request || this.closed) return;
      this.item = null;
      for (const view of [this.planes, this.solid])
        while (view.volumes.length) view.removeVolume(view.volumes[0]);
      const table = colourTable();
      over.setColormapLabel(table);
      body.setColormapLabel(table);
      this.planes.addVolume(base);
      this.planes.addVolume(over);
      this.solid.addVolume(body);
      [this.over, this.body] = [over, body];
      this.item = item;
      this.refresh();
      this.place();
    }

    refresh() {
      if (!this.item) return;
      const [base] = this.planes.volumes;
      base.cal_min = state.low; base.cal_max = Math.max(state.low + 1, state.high);
      this.over.img.set(overlayOf(this.item));
      this.body.img.set(overlayOf(this.item, false));
      this.planes.setOpacity(1, state.opacity);
      this.planes.updateGLVolume();
      this.solid.updateGLVolume();
    }

    draw() { this.place(); }

    place() {
      if (!this.item) return;
      this.planes.scene.crosshairPos = this.planes.vox2frac(state.position);
      this.planes.drawScene();
    }

    close() {
      this.closed = true;
      for (const [view, canvas] of [[this.planes, this.canvas], [this.solid, this.solidCanvas]]) {
        view?.cleanup?.();
        canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
      }
      this.host.replaceChildren();
      this.host.classList.remove("in3d");
    }
  }

  function colourTable() {
    const at = (i) => colours.map((c) => c[i]);
    return { R: at(0), G: at(1), B: at(2), A: colours.map((_, i) => (i ? 255 : 0)),
      I: colours.map((_, i) => i), labels: colours.map(() => "") };
  }

  // A NIfTI file of 8 bit voxels in memory, centred at the origin.
  function toNifti({ shape, spacing }, data, isLabels) {
    const buffer = new ArrayBuffer(352 + data.length);
    const view = new DataView(buffer);
    const put = (at, value) => view.setFloat32(at, value, true);
    view.setInt32(0, 348, true);
    [3, ...shape, 1, 1, 1, 1].forEach((n, i) => view.setInt16(40 + 2 * i, n, true));
    view.setInt16(68, isLabels ? 1002 : 0, true); // what the voxels mean: labels, or nothing special
    view.setInt16(70, 2, true); view.setInt16(72, 8, true); // 8 bit without a sign
    [1, ...spacing, 1, 1, 1, 1].forEach((n, i) => put(76 + 4 * i, n));
    put(108, 352); put(112, 1);
    view.setUint8(123, 2); // mm
    view.setInt16(254, 1, true); // the affine below holds
    for (let axis = 0; axis < 3; axis++) {
      put(280 + 16 * axis + 4 * axis, spacing[axis]);
      put(280 + 16 * axis + 12, -spacing[axis] * (shape[axis] - 1) / 2);
    }
    [0x6e, 0x2b, 0x31, 0].forEach((c, i) => view.setUint8(344 + i, c));
    new Uint8Array(buffer, 352).set(data);
    return buffer;
  }

  // ---- controls ---------------------------------------------------------------------------------

  let backend = null; // the promise of what draws; there is one at a time
  let drawing = null; // that itself, once it is there
  let chosen = null; // the name of the backend that the user asked for
  let wanted = 0; // counts requests, so that a slow one does not replace a later one

  function hasWebGL() {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl2"));
    } catch { return false; }
  }

  // Whether a case can be shown in 3D; what does not tell its directions is shown as it is stored.
  function isSolid(item) {
    return Boolean(facts.niivue) && item.shape[2] > 1 && item.anatomical && hasWebGL();
  }

  // Open what draws, once: whoever asks while it is being opened waits for the same.
  function backendOf(name) {
    if (backend?.name !== name) {
      const before = backend;
      backend = { name, opened: open(name, before?.opened) };
    }
    return backend.opened;
  }

  async function open(name, before) {
    (await before)?.close();
    drawing = null;
    const host = byId("stage");
    let made = null;
    if (name === "volume") {
      try {
        if (!window.niivue) await loadScript(facts.folder + "/" + facts.niivue);
        made = new Volume(host);
        await made.open();
      } catch (error) {
        try { made?.close(); } catch { /* it was never whole */ }
        made = null;
        host.replaceChildren();
        host.classList.remove("in3d");
        facts.niivue = null; // it is not tried again
        name = "slices";
        tell("3D is not available here (" + error.message + "); these are slices.");
      }
    }
    made ??= new Slices(host);
    drawing = made;
    byId("viewer").dataset.backend = name;
    for (const button of document.querySelectorAll("[data-backend-choice]"))
      button.setAttribute("aria-pressed", String(button.dataset.backendChoice === name));
    return made;
  }

  // Draw a case, unless a later request came meanwhile; say whether it was drawn.
  async function draw(item, request) {
    const name = chosen !== "slices" && isSolid(item) ? "volume" : "slices";
    const drawn = await backendOf(name);
    if (request !== wanted) return false;
    await drawn.show(item);
    return request === wanted;
  }

  function useBackend(name) {
    chosen = name;
    return show(state.number, { keep: true });
  }

  // Show a case; with `keep` it may be the one that is shown, and stays where it is.
  async function show(number, { scroll = false, keep = false } = {}) {
    const entry = facts.cases[number];
    if (!entry?.file) return;
    const request = ++wanted;
    state.number = number;
    byId("case").value = String(number);
    byId("casename").textContent = entry.id;
    byId("casescore").textContent = entry.score;
    tell("loading …");
    byId("stage").classList.add("waiting"); // no picture stays under the name of another case
    if (scroll) byId("cases").scrollIntoView({ behavior: "smooth" });
    for (const row of document.querySelectorAll("tr[data-number]"))
      row.classList.toggle("current", Number(row.dataset.number) === number);
    try {
      const item = await loadCase(number);
      if (request !== wanted) return;
      const isSame = keep && state.item === item;
      state.item = item;
      if (!isSame) {
        state.position = [...item.start];
        state.channel = Math.min(state.channel, Math.max(0, item.channels.length - 1));
        fillChoices(item);
        resetWindow();
      }
      tell(item.every.some((n) => n > 1) ? `thinned: one voxel is shown for ${item.every.join(" × ")} (x × y × z)` : "");
      if (!await draw(item, request)) return;
      byId("stage").classList.remove("waiting");
      tellPosition();
      byId("viewer").dataset.shown = String(number);
    } catch (error) {
      if (request === wanted) tell(`${entry.id} ${error.message}`);
    }
  }

  function fillChoices(item) {
    const select = byId("channel");
    select.replaceChildren(...item.channels.map((c, i) => new Option(c.name, i)));
    select.value = String(state.channel);
    byId("channelbox").hidden = item.channels.length < 2;
    const maps = byId("map");
    const before = maps.value;
    maps.replaceChildren(...item.maps.map(({ name }, i) => new Option(name, i)));
    if (Number(before) < item.maps.length) maps.value = before;
    if (!maps.value && item.maps.length) maps.value = "0";
    byId("mapbox").hidden = item.maps.length < 2;
    document.querySelector("[data-backend-choice=volume]").hidden = !isSolid(item);
    const alone = !item.reference || !item.maps.length;
    for (const button of document.querySelectorAll("button[data-mode]"))
      button.hidden = alone && button.dataset.mode !== "reference";
    if (alone) setMode("reference", false);
  }

  function resetWindow() { state.low = 0; state.high = 255; writeWindow(); }

  function writeWindow() {
    const c = state.item?.channels[state.channel];
    byId("level").value = String((state.low + state.high) / 2);
    byId("window").value = String(state.high - state.low);
    if (!c) return;
    const real = (v) => c.low + (c.high - c.low) * v / 255;
    const round = (v) => Number(v.toPrecision(4));
    byId("windowtext").textContent = `${round(real(state.low))} to ${round(real(state.high))}`;
  }

  function tell(text) { byId("note").textContent = text; }

  function tellPosition() {
    const { item, position } = state;
    if (!item) return;
    const at = position[0] + item.shape[0] * (position[1] + item.shape[1] * position[2]);
    const c = item.channels[state.channel];
    const said = item.maps.map(({ name, map }) => `${name}: ${labelName(map[at])}`);
    if (item.reference) said.unshift(`reference: ${labelName(item.reference[at])}`);
    if (c) said.unshift(`about ${Number((c.low + (c.high - c.low) * c.levels[at] / 255).toPrecision(3))}`);
    const [x, y, z] = voxelOf(item, position);
    byId("position").textContent = `x ${x}  y ${y}  z ${z}   ${said.join("   ")}`;
    byId("viewer").dataset.position = `${x} ${y} ${z}`;
  }

  const labelName = (v) => facts.labels.find((l) => l.position === v)?.name ?? (v ? "undeclared" : "background");

  function moved() { drawing?.draw(); tellPosition(); }

  function move(axis, by) {
    if (!state.item) return;
    const n = state.item.shape[axis];
    state.position[axis] = Math.min(n - 1, Math.max(0, state.position[axis] + by));
    moved();
  }

  function setMode(mode, redraw = true) {
    state.mode = mode;
    state.shown = true;
    byId("viewer").dataset.mode = mode;
    for (const button of document.querySelectorAll("button[data-mode]"))
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    byId("errorkey").hidden = mode !== "disagreement";
    byId("bothkey").hidden = mode !== "both";
    if (redraw) drawing?.refresh();
  }

  function toggleOverlay() {
    state.shown = !state.shown;
    byId("viewer").dataset.overlay = state.shown ? "on" : "off";
    byId("overlay").setAttribute("aria-pressed", String(state.shown));
    drawing?.refresh();
  }

  function step(by) {
    const numbers = Array.from(byId("case").options, (o) => Number(o.value));
    const next = numbers[numbers.indexOf(state.number) + by];
    if (next !== undefined) show(next);
  }

  const KEYS = {
    PageUp: () => move(2, 1), PageDown: () => move(2, -1),
    ArrowUp: () => move(2, 1), ArrowDown: () => move(2, -1),
    ArrowLeft: () => move(0, 1), ArrowRight: () => move(0, -1),
    o: toggleOverlay, n: () => step(1), p: () => step(-1),
    1: () => setMode("reference"), 2: () => setMode("prediction"),
    3: () => setMode("both"), 4: () => setMode("disagreement"),
  };

  function wire() {
    for (const button of document.querySelectorAll("[data-show]"))
      button.addEventListener("click", () => show(Number(button.dataset.show), { scroll: true }));
    const viewer = byId("viewer");
    if (!viewer) return;
    readColours();
    byId("case").addEventListener("change", (e) => show(Number(e.target.value)));
    byId("previous").addEventListener("click", () => step(-1));
    byId("next").addEventListener("click", () => step(1));
    byId("channel").addEventListener("change", async (e) => {
      state.channel = Number(e.target.value);
      resetWindow();
      await show(state.number, { keep: true });
    });
    byId("map").addEventListener("change", () => drawing?.refresh());
    byId("opacity").addEventListener("input", (e) => { state.opacity = Number(e.target.value); drawing?.refresh(); });
    const windowed = () => {
      const centre = Number(byId("level").value), width = Number(byId("window").value);
      state.low = centre - width / 2; state.high = centre + width / 2;
      writeWindow();
      drawing?.refresh();
    };
    byId("level").addEventListener("input", windowed);
    byId("window").addEventListener("input", windowed);
    byId("overlay").addEventListener("click", toggleOverlay);
    for (const button of document.querySelectorAll("button[data-mode]"))
      button.addEventListener("click", () => setMode(button.dataset.mode));
    for (const button of document.querySelectorAll("[data-backend-choice]")) {
      button.addEventListener("click", () => useBackend(button.dataset.backendChoice));
    }
    for (const box of document.querySelectorAll("[data-label]"))
      box.addEventListener("change", () => {
        const position = Number(box.dataset.label);
        if (box.checked) state.hidden.delete(position); else state.hidden.add(position);
        drawing?.refresh();
      });
    byId("stage").addEventListener("keydown", (event) => {
      const act = KEYS[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    }, { capture: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); drawing?.refresh(); });
    setMode(state.mode, false);
    // Nothing is loaded before somebody comes near: a report of many cases opens at once.
    const first = Number(viewer.dataset.first);
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((e) => e.isIntersecting)) return;
      observer.disconnect();
      if (state.number < 0) show(first);
    }, { rootMargin: "200px" }).observe(viewer);
  }

  // ---- tables -----------------------------------------------------------------------------------

  function sortable(table) {
    const heads = Array.from(table.tHead?.rows[0]?.cells ?? []);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      button?.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const rows = Array.from(table.tBodies[0].rows);
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)], [i, j] = [Number(x), Number(y)];
          if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1; // no value comes last
          const order = Number.isNaN(i) || Number.isNaN(j) ? x.localeCompare(y) : i - j;
          return down ? -order : order;
        };
        table.tBodies[0].append(...rows.sort(compare));
      });
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  wire();
  return { take, show };
})();
