// A canvas to draw a digit on, and the ten probabilities as bars. Python is sent the drawing, grey bytes of SENT × SENT,
// and answers with `probabilities`, none if it sees no digit, and a `message`.
const SHOWN = 280, SENT = 140;

function render({ model, el }) {
  el.classList.add("drawing-pad");
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SHOWN;
  canvas.setAttribute("aria-label", "draw a digit here");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const small = document.createElement("canvas");
  small.width = small.height = SENT;
  const smallContext = small.getContext("2d", { willReadFrequently: true });

  const side = document.createElement("div");
  const bars = document.createElement("div");
  bars.className = "bars";
  for (let digit = 0; digit < 10; digit++) {
    const row = document.createElement("div");
    row.className = "row";
    row.innerHTML = `<b>${digit}</b><span class="track"><span class="bar"></span></span><span class="share"></span>`;
    bars.append(row);
  }
  const text = document.createElement("p");
  text.setAttribute("role", "status");
  const clear = document.createElement("button");
  clear.textContent = "Clear";
  side.append(bars, text, clear);
  el.append(canvas, side);

  let drawing = false, waiting = false, changed = false;

  function wipe() {
    context.fillStyle = "white";
    context.fillRect(0, 0, SHOWN, SHOWN);
    context.lineWidth = SHOWN / 13;
    context.lineCap = context.lineJoin = "round";
  }

  // One drawing is on its way at a time; what was drawn meanwhile is sent when the answer has come.
  function send() {
    if (waiting) { changed = true; return; }
    smallContext.drawImage(canvas, 0, 0, SENT, SENT);
    const rgba = smallContext.getImageData(0, 0, SENT, SENT).data;
    const grey = new Uint8Array(SENT * SENT);
    for (let i = 0; i < grey.length; i++) grey[i] = rgba[4 * i];
    waiting = true;
    model.send({ side: SENT }, undefined, [grey.buffer]);
  }

  function show({ probabilities, message }) {
    const best = probabilities.indexOf(Math.max(...probabilities));
    [...bars.children].forEach((row, digit) => {
      const share = probabilities[digit] ?? 0;
      row.classList.toggle("best", digit === best);
      row.querySelector(".bar").style.width = `${100 * share}%`;
      row.querySelector(".share").textContent = probabilities.length ? `${(100 * share).toFixed(1)} %` : "";
    });
    text.textContent = message;
    el.dataset.digit = probabilities.length ? best : "";
  }

  function receive(answer) {
    waiting = false;
    show(answer);
    if (changed) { changed = false; send(); }
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SHOWN / box.width, (event.clientY - box.top) * SHOWN / box.height];
  }

  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    context.beginPath();
    context.moveTo(...point(event));
    context.lineTo(...point(event));
    context.stroke();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawing) return;
    context.lineTo(...point(event));
    context.stroke();
    send();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => { if (drawing) { drawing = false; send(); } });
  }
  clear.addEventListener("click", () => { wipe(); send(); });
  model.on("msg:custom", receive);

  wipe();
  show({ probabilities: [], message: "draw one digit, as large as you like" });
}

export default { render };
