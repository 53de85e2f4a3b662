"use strict";

const byId = (id) => document.getElementById(id);
const AT_ONCE = 2; // photos that are sent at a time
const FRAME_SIDE = 640; // pixels of the longer side of a camera's frame
const SVG = "http://www.w3.org/2000/svg";

const photos = []; // {name, answer, figure}
const waiting = [];
let sending = 0;
let token = "";

// ------------------------------------------------------------------------------------ requests

function options() {
  const query = new URLSearchParams();
  if (byId("model").value) query.set("model", byId("model").value);
  if (byId("groups").value.trim()) query.set("age_groups", byId("groups").value.trim());
  if (Number(byId("size").value) > 0) query.set("min_size", byId("size").value);
  return query;
}

async function ask(path, init = {}) {
  const headers = { ...init.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...init, headers });
  if (response.status === 401) {
    byId("access").hidden = false;
    byId("token").focus();
  }
  return response;
}

async function loadModels() {
  try {
    const response = await ask("v1/models");
    const found = await response.json();
    if (!response.ok) return say(found.error, true);
    byId("access").hidden = true;
    byId("model").replaceChildren(
      ...found.models.map((name) => new Option(name, name, false, name === found.default)),
    );
    say("");
  } catch {
    say("The server does not answer.", true);
  }
}

function say(text, isProblem = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("problem", isProblem);
}

// -------------------------------------------------------------------------------------- photos

function add(files) {
  for (const file of files) {
    const figure = makeFigure(file);
    byId("photos").append(figure);
    const photo = { name: file.name || "pasted image", file, figure, answer: null };
    photos.push(photo);
    waiting.push(photo);
  }
  send();
}

function send() {
  while (sending < AT_ONCE && waiting.length) {
    const photo = waiting.shift();
    sending += 1;
    predict(photo).finally(() => {
      sending -= 1;
      delete photo.file;
      send();
    });
  }
  const left = sending + waiting.length;
  if (left) say(`${left} photo${left > 1 ? "s" : ""} to go`);
  else if (photos.length && !byId("status").classList.contains("problem")) say(summary());
}

function summary() {
  const read = photos.filter((photo) => photo.answer && photo.answer.faces);
  const faces = read.reduce((sum, photo) => sum + photo.answer.faces.length, 0);
  return `${faces} face${faces === 1 ? "" : "s"} in ${read.length} photo${read.length === 1 ? "" : "s"}`;
}

async function predict(photo) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const init = { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: photo.file };
      const response = await ask(`v1/predict?${options()}`, init);
      if (response.status === 429 && attempt < 20) {
        const seconds = Number(response.headers.get("Retry-After")) || 1;
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
        continue;
      }
      const answer = await response.json();
      photo.answer = answer.images ? answer.images[0] : { error: answer.error };
    } catch {
      photo.answer = { error: "the server does not answer" };
    }
    break;
  }
  if (photos.includes(photo)) show(photo);
}

function makeFigure(file) {
  const figure = document.createElement("figure");
  figure.className = "waiting";
  const picture = document.createElement("div");
  picture.className = "picture";
  const image = document.createElement("img");
  image.alt = file.name || "pasted image";
  image.src = URL.createObjectURL(file);
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => image.remove(); // A format that this browser cannot show.
  picture.append(image, element("svg", {}));
  const caption = document.createElement("figcaption");
  caption.textContent = file.name || "pasted image";
  figure.append(picture, caption);
  return figure;
}

function show(photo) {
  const { answer, figure } = photo;
  figure.className = "";
  const caption = figure.querySelector("figcaption");
  if (answer.error) {
    caption.textContent = `${photo.name}: ${answer.error}`;
    caption.className = "problem";
    return;
  }
  const count = answer.faces.length;
  caption.textContent = `${photo.name}: ${count} face${count === 1 ? "" : "s"}`;
  const svg = figure.querySelector("svg");
  const image = figure.querySelector("img");
  if (!image) figure.querySelector(".picture").style.aspectRatio = `${answer.width} / ${answer.height}`;
  draw(svg, answer, answer.faces);
  for (const [index, face] of answer.faces.entries()) byId("rows").append(row(photo.name, index + 1, face));
  byId("results").hidden = !byId("rows").children.length;
}

function row(name, number, face) {
  const line = document.createElement("tr");
  const interval = face.age_interval ? `${face.age_interval[0]}–${face.age_interval[1]}` : "";
  const probability = face.gender_probability === null ? "" : percent(face.gender_probability);
  for (const text of [name, number, face.age ?? "", interval, face.age_group ?? "", face.gender ?? "", probability]) {
    line.insertCell().textContent = text;
  }
  return line;
}

const percent = (share) => `${Math.round(100 * share)} %`;

function label(face) {
  const age = face.age_interval ? `${face.age} (${face.age_interval[0]}–${face.age_interval[1]})` : face.age_group;
  const gender = face.gender ? `${face.gender} ${percent(face.gender_probability)}` : null;
  return [age, gender].filter((part) => part !== null && part !== undefined);
}

/** Draws boxes and labels over a picture; with `mirrored` as a mirror shows them. */
function draw(svg, size, faces, mirrored = false) {
  svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  const side = Math.max(size.width, size.height);
  const taken = [];
  svg.replaceChildren(
    ...faces.map((face) => {
      let [left, top, right, bottom] = face.box;
      if (mirrored) [left, right] = [size.width - right, size.width - left];
      const group = element("g", { class: "face" });
      for (const kind of ["under", "over"]) {
        group.append(element("rect", { x: left, y: top, width: right - left, height: bottom - top, class: kind }));
      }
      const lines = label(face);
      // Small faces are often close to each other.
      const height = Math.min(side / 26, Math.max(side / 45, (bottom - top) / 3));
      const width = 0.56 * height * Math.max(...lines.map((line) => line.length), 0);
      const x = Math.max(0, Math.min(left, size.width - width));
      const y = freePlace(taken, x, [top, bottom], width, 1.15 * height * lines.length, size.height);
      lines.forEach((line, index) => {
        const place = { x, y: y + (index + 0.85) * 1.15 * height, "font-size": height, "stroke-width": height / 6 };
        const text = element("text", place);
        text.textContent = line;
        group.append(text);
      });
      return group;
    }),
  );
}

/** The top of a label: above the box, below it, or further away, where it covers no other label. */
function freePlace(taken, x, [top, bottom], width, height, most) {
  const gap = height / 10;
  const places = [];
  for (let step = 0; step < 4; step += 1) {
    places.push(top - gap - (step + 1) * height, bottom + gap + step * height);
  }
  const inside = places.filter((y) => y >= 0 && y + height <= most);
  const isFree = (y) =>
    !taken.some((one) => x < one.x + one.width && one.x < x + width && y < one.y + one.height && one.y < y + height);
  const y = inside.find(isFree) ?? inside[0] ?? Math.max(0, most - height);
  taken.push({ x, y, width, height });
  return y;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// ----------------------------------------------------------------------------------- downloads

function save(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function toCsv() {
  const head = ["file", "face", "left", "top", "right", "bottom", "score", "age", "age_low", "age_high"];
  const lines = [[...head, "age_group", "gender", "gender_probability", "error"]];
  for (const { name, answer } of photos) {
    if (!answer) continue;
    if (answer.error) lines.push([name, ...Array(12).fill(""), answer.error]);
    for (const [index, face] of (answer.faces || []).entries()) {
      const [low, high] = face.age_interval || ["", ""];
      lines.push([name, index + 1, ...face.box, face.score, face.age, low, high,
        face.age_group, face.gender, face.gender_probability, ""]);
    }
  }
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function cell(value) {
  let text = String(value ?? "");
  if (/^[=+@\t\r]|^-(?![\d.])/.test(text)) text = `'${text}`; // A spreadsheet would take it for a formula.
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const toJson = () =>
  JSON.stringify(photos.filter((p) => p.answer).map((p) => ({ ...p.answer, file: p.name })), null, 2) + "\n";

// -------------------------------------------------------------------------------------- camera

let stopCamera = null;

async function startCamera() {
  if (!navigator.mediaDevices) return say("Browsers open cameras only on https:// and localhost pages.", true);
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "user" } });
  } catch (error) {
    const reason = error.name === "NotFoundError" ? "there is none" : "the browser does not allow it";
    return say(`The camera does not open: ${reason}.`, true);
  }
  const video = byId("video");
  video.srcObject = stream;
  await video.play();
  byId("live").hidden = false;
  byId("camera").textContent = "Stop the camera";
  say("");

  const address = new URL(`v1/camera?${options()}`, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  const canvas = document.createElement("canvas");
  const times = [];
  let stopped = false;

  const sendFrame = () => {
    if (stopped || socket.readyState !== WebSocket.OPEN) return;
    const scale = Math.min(1, FRAME_SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => blob && !stopped && socket.send(blob), "image/jpeg", 0.85);
  };

  socket.onopen = () => {
    socket.send(JSON.stringify({ token }));
    sendFrame();
  };
  socket.onmessage = (message) => {
    const answer = JSON.parse(message.data);
    if (answer.faces) {
      draw(byId("overlay"), answer, answer.faces, true);
      times.push(performance.now());
      while (times[0] < times.at(-1) - 2000) times.shift();
      const rate = times.length > 1 ? (1000 * (times.length - 1)) / (times.at(-1) - times[0]) : 0;
      byId("rate").textContent = `${rate.toFixed(0)} frames a second, ${answer.faces.length} face${answer.faces.length === 1 ? "" : "s"}`;
      requestAnimationFrame(sendFrame); // Not faster than the display.
    } else {
      byId("rate").textContent = answer.error;
      setTimeout(sendFrame, 500);
    }
  };
  socket.onclose = (event) => {
    if (!stopped) {
      stopCamera();
      say(event.reason ? `The server ended: ${event.reason}.` : "The server does not answer.", true);
    }
  };

  stopCamera = () => {
    stopped = true;
    stopCamera = null;
    socket.close();
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    byId("overlay").replaceChildren();
    byId("rate").textContent = "";
    byId("live").hidden = true;
    byId("camera").textContent = "Start the camera";
  };
}

// -------------------------------------------------------------------------------------- events

byId("host").textContent = location.host;
byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => add(event.clipboardData.files));
document.addEventListener("keydown", (event) => event.key === "Escape" && stopCamera && stopCamera());
byId("camera").addEventListener("click", () => (stopCamera ? stopCamera() : startCamera()));
byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  loadModels();
});
byId("csv").addEventListener("click", () => save("faces.csv", "text/csv", toCsv()));
byId("json").addEventListener("click", () => save("faces.json", "application/json", toJson()));
byId("clear").addEventListener("click", () => {
  photos.length = waiting.length = 0;
  byId("photos").replaceChildren();
  byId("rows").replaceChildren();
  byId("results").hidden = true;
  say("");
});
loadModels();
