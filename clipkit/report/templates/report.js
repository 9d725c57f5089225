"use strict";
// The map: the picture and the words of the point under the pointer, or of the one that the arrow keys reached.
const ZOOM = 2;
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg"), tip = plot.querySelector(".tip"), frame = tip.querySelector(".window");
  const image = tip.querySelector("img"), words = tip.querySelector("p");
  const points = Array.from(svg.querySelectorAll(".pt"));
  const columns = Number(plot.dataset.columns), side = Number(plot.dataset.side);
  let current = -1;
  function show(number) {
    if (current >= 0) points[current].classList.remove("on");
    current = number;
    tip.classList.toggle("shown", number >= 0);
    if (number < 0) return;
    const point = points[number], size = side * ZOOM;
    point.classList.add("on");
    frame.style.width = frame.style.height = `${size}px`;
    image.style.width = `${columns * size}px`;
    image.style.left = `${-(number % columns) * size}px`;
    image.style.top = `${-Math.floor(number / columns) * size}px`;
    words.textContent = point.getAttribute("aria-label");
    const at = point.getBoundingClientRect(), box = plot.getBoundingClientRect();
    const left = at.left - box.left + 14, room = box.width - tip.offsetWidth - 4;
    tip.style.left = `${Math.max(4, left > room ? left - tip.offsetWidth - 24 : left)}px`;
    tip.style.top = `${Math.max(4, Math.min(at.top - box.top - 10, box.height - tip.offsetHeight - 4))}px`;
  }
  svg.addEventListener("pointerover", (event) => {
    const number = points.indexOf(event.target);
    if (number >= 0) show(number);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step) return;
    event.preventDefault();
    show((Math.max(current, step > 0 ? -1 : 0) + step + points.length) % points.length);
  });
}
