// A canvas to draw a digit on, and the ten probabilities as bars. Python is sent a number and the drawing, gray bytes
// of SENT × SENT, and answers with that `number`, `probabilities`, none if it sees no digit, and a `message`.
const SHOWN = 280, SENT = 140, PATIENCE = 5000;  // pixels, pixels, milliseconds

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

  let drawing = false, waiting = false, changed = false, number, timer;

  function wipe() {
    context.fillStyle = "white";
    context.fillRect(0, 0, SHOWN, SHOWN);
    context.lineWidth = SHOWN / 13;
    context.lineCap = context.lineJoin = "round";
  }

  // One drawing is on its way at a time; of what is drawn meanwhile, the newest is sent when the answer has come or is
  // overdue, as when the kernel is busy or gone. Of two answers only that to the newest drawing is shown.
  function send() {
    changed = waiting;
    if (waiting) return;
    smallContext.drawImage(canvas, 0, 0, SENT, SENT);
    const rgba = smallContext.getImageData(0, 0, SENT, SENT).data;
    const gray = Uint8Array.from({ length: SENT * SENT }, (_, i) => rgba[4 * i]);
    waiting = true;
    number = Math.random();
    const message = "no answer yet: is the kernel busy or stopped?";
    timer = setTimeout(() => go({ probabilities: [], message }), PATIENCE);
    model.send({ number, side: SENT }, undefined, [gray.buffer]);
  }

  function go(answer) {
    clearTimeout(timer);
    waiting = false;
    show(answer);
    if (changed) send();
  }

  function show({ probabilities, message }) {
    const best = probabilities.indexOf(Math.max(...probabilities));
    [...bars.children].forEach((row, digit) => {
      const share = probabilities[digit] ?? 0;
      row.classList.toggle("best", digit === best);
      row.querySelector(".bar").style.width = `${100 * share}%`;
      row.querySelector(".share").textContent = probabilities.length ? `${(100 * share).toFixed(1)}%` : "";
    });
    text.textContent = message;
    el.dataset.digit = probabilities.length ? best : "";
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
  model.on("msg:custom", (answer) => { if (answer.number === number) go(answer); });

  wipe();
  show({ probabilities: [], message: "draw one digit, as large as you like" });
}

export default { render };
