"use strict";
(() => {
  const root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });

  for (const area of document.querySelectorAll(".cells")) {
    const data = JSON.parse(area.dataset.cells);
    const svg = area.querySelector("svg");
    const mark = svg.querySelector(".mark");
    const said = area.closest("figure").querySelector(".said");
    const lines = data.names.length;
    let line = 0, step = 0;
    const show = () => {
      mark.setAttribute("x", step);
      mark.setAttribute("y", line);
      mark.classList.add("on");
      said.textContent = data.names[line] + ", " + data.known[data.words[line][step]];
    };
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const within = (value, most) => Math.min(most - 1, Math.max(0, Math.floor(value * most)));
      step = within((event.clientX - box.left) / box.width, data.steps);
      line = within((event.clientY - box.top) / box.height, lines);
      show();
    };
    svg.addEventListener("pointermove", at);
    svg.addEventListener("pointerdown", at);
    area.addEventListener("focus", () => { if (area.matches(":focus-visible")) show(); });
    area.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
                      Home: [0, -data.steps], End: [0, data.steps], PageUp: [-lines, 0], PageDown: [lines, 0] };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      line = Math.min(lines - 1, Math.max(0, line + move[0]));
      step = Math.min(data.steps - 1, Math.max(0, step + move[1]));
      show();
    });
  }

  for (const point of document.querySelectorAll(".point")) {
    const said = point.closest("figure").querySelector(".said");
    const show = () => { said.textContent = point.dataset.words; };
    for (const name of ["pointerenter", "pointerdown", "focus"]) point.addEventListener(name, show);
  }

  for (const player of document.querySelectorAll(".player")) {
    const slider = player.querySelector(".frame"), button = player.querySelector(".play"), at = player.querySelector(".at");
    const films = [...document.querySelectorAll(".film")];
    const count = Number(slider.max) + 1;
    let timer = 0;
    const show = () => {
      const frame = Number(slider.value);
      for (const film of films) {
        film.style.setProperty("--x", frame % Number(film.dataset.columns));
        film.style.setProperty("--y", Math.floor(frame / Number(film.dataset.columns)));
      }
      at.textContent = (frame + 1) + " of " + count;
    };
    const stop = () => { clearInterval(timer); timer = 0; button.textContent = "▶"; };
    slider.addEventListener("input", () => { stop(); show(); });
    button.addEventListener("click", () => {
      if (timer) { stop(); return; }
      button.textContent = "❚❚";
      timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % count; show(); }, 1000 / Number(player.dataset.fps));
    });
  }

  const cut = (slider) => {
    slider.closest(".sample").querySelector(".pair").style.setProperty("--cut", slider.value + "%");
  };
  const sliders = [...document.querySelectorAll(".slider:not(.all)")];
  for (const slider of sliders) slider.addEventListener("input", () => cut(slider));
  for (const all of document.querySelectorAll(".slider.all")) {
    all.addEventListener("input", () => { for (const slider of sliders) { slider.value = all.value; cut(slider); } });
  }
})();
