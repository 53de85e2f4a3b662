// Filters and sorts the faces of the page. Without it the page shows all of them.
// A figure's data-face is JSON: "true" {task: class}, "by" a list with {task: [class, probability,
// error]} for each predictor (-1 and null: unknown), and "groups", a list of names.
"use strict";
(() => {
  const root = document.getElementById("browser");
  const form = root.querySelector("form");
  const list = root.querySelector(".faces");
  const status = root.querySelector("[role=status]");
  const more = root.querySelector("button");
  const classes = JSON.parse(form.dataset.classes);
  const faces = [...list.children].map((figure, place) => ({
    figure, place, ...JSON.parse(figure.dataset.face),
  }));
  const PAGE = 48;
  let shown = PAGE;
  let total = null; // faces of the whole test in the cell that was clicked

  const field = (name) => form.elements[name];

  function fillClasses() {
    for (const name of ["true", "predicted"]) {
      const options = classes[field("task").value].map(
        (text, value) => new Option(text, String(value)));
      field(name).replaceChildren(new Option("any", ""), ...options);
    }
  }

  function chosen() {
    const task = field("task").value, by = Number(field("predictor").value);
    const wanted = (name, value) => field(name).value === "" || Number(field(name).value) === value;
    const group = field("group").value, show = field("show").value;
    return faces.filter((face) => {
      const truth = face.true[task], said = face.by[by][task][0];
      if (truth < 0 || said < 0) return false;
      if (show !== "all" && (show === "errors") === (truth === said)) return false;
      return wanted("true", truth) && wanted("predicted", said) &&
        (group === "" || face.groups.includes(group));
    }).map((face) => {
      const [, probability, error] = face.by[by][task];
      const key = { sure: probability, unsure: probability === null ? null : -probability,
        years: error }[field("sort").value];
      return { face, key: key === null ? -Infinity : key };
    }).sort((a, b) => b.key - a.key || a.face.place - b.face.place).map((each) => each.face);
  }

  function render() {
    const found = chosen();
    const now = found.slice(0, shown).map((face) => face.figure);
    list.replaceChildren(...now);
    more.hidden = found.length <= now.length;
    const of = total === null ? "" :
      ` The cell has ${total.toLocaleString("en")} faces; this page holds ${found.length} of them.`;
    status.textContent = found.length === 0 ? `No face on this page matches.${of}` :
      `${now.length} of ${found.length} matching faces are shown.${of}`;
  }

  function update() { shown = PAGE; render(); }

  form.addEventListener("change", (event) => {
    total = null;
    if (event.target.name === "task") fillClasses();
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const before = shown;
    shown += PAGE;
    render();
    // The button may be gone: the reader goes on at the first new face.
    const next = list.children[before];
    if (next) { next.tabIndex = -1; next.focus({ preventScroll: true }); }
  });
  for (const link of document.querySelectorAll(".matrix a")) {
    link.addEventListener("click", () => {
      field("predictor").value = link.dataset.predictor;
      field("task").value = link.dataset.task;
      fillClasses();
      field("true").value = link.dataset.true;
      field("predicted").value = link.dataset.predicted;
      field("show").value = "all";
      field("group").value = "";
      total = Number(link.dataset.count);
      update();
      root.focus({ preventScroll: true });
    });
  }
  fillClasses();
  for (const part of [form, status]) part.hidden = false;
  render();
})();
