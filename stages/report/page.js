"use strict";
(() => {
  const main = document.querySelector("main"), tip = document.getElementById("tip");
  const base = 190, left = 46, right = 388, top = 10;

  // What a place in a chart stands for.
  const range = (svg, name) => svg.dataset[name].split(" ").map(Number);
  const xAt = (svg, px) => { const [a, b] = range(svg, "x"); return a + (px - left) / (right - left) * (b - a); };
  const yAt = (svg, py) => {
    const [a, b] = range(svg, "y"), t = (base - py) / (base - top);
    return svg.dataset.log ? a * Math.pow(b / a, t) : a + t * (b - a);
  };
  const text = v => {
    const a = Math.abs(v);
    return a !== 0 && (a < 1e-3 || a >= 1e7) ? v.toExponential(2) : String(Number(v.toPrecision(4)));
  };

  const leave = () => { tip.hidden = true; document.querySelectorAll(".cursor").forEach(c => c.remove()); };
  const hover = e => {
    const svg = e.target.closest && e.target.closest("svg.chart");
    leave();
    if (!svg) return;
    const box = svg.getBoundingClientRect(), px = (e.clientX - box.left) / box.width * 400;
    let near = null;
    const lines = [...svg.querySelectorAll(".line")].map(p => {
      const points = p.getAttribute("d").slice(1).split("L").map(s => s.split(" ").map(Number));
      let best = points[0];
      for (const q of points) if (Math.abs(q[0] - px) < Math.abs(best[0] - px)) best = q;
      if (near === null || Math.abs(best[0] - px) < Math.abs(near - px)) near = best[0];
      return [p.dataset.name, best];
    });
    if (near === null) return;
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("d", `M${near} ${top}V${base}`);
    svg.append(cursor);
    tip.textContent = svg.querySelector(".name").textContent + " " + text(xAt(svg, near)) + lines.map(([n, q]) => "\n" + n + "  " + text(yAt(svg, q[1]))).join("");
    tip.hidden = false;
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(4, Math.min(innerWidth - w - 4, e.clientX + 14)) + "px";
    tip.style.top = Math.max(4, Math.min(innerHeight - h - 4, e.clientY - h - 12)) + "px";
  };
  main.addEventListener("pointermove", hover);
  main.addEventListener("pointerdown", hover);
  main.addEventListener("pointerleave", leave);

  // A page that should have been written again says so.
  const late = () => {
    const when = main.querySelector(".when");
    if (!when || when.dataset.over === "true" || main.dataset.live) return;
    const limit = 120 + 3 * Number(when.dataset.every);
    when.querySelector(".late").hidden = Date.now() / 1000 - Number(when.dataset.written) < limit;
  };
  late();
  setInterval(late, 30000);

  // The live page asks its server.
  if (main.dataset.live) {
    let misses = 0;
    const ask = async () => {
      try {
        const answer = await fetch("live", {cache: "no-store"});
        if (!answer.ok) throw new Error(answer.status);
        const html = await answer.text();
        const open = [...main.querySelectorAll("details[open]")].map(d => d.id);
        if (tip.hidden && !getSelection().toString()) {
          main.innerHTML = html;
          for (const id of open) { const d = document.getElementById(id); if (d) d.open = true; }
        }
        misses = 0;
      } catch {
        if (++misses === 3) {
          const badge = main.querySelector(".badge");
          badge.textContent = "no answer: the run has ended or can’t be reached; report.html in its folder has its end";
          badge.className = "badge stalled";
        }
      }
      setTimeout(ask, document.hidden ? 10000 : 2000);
    };
    setTimeout(ask, 2000);
  }
})();
