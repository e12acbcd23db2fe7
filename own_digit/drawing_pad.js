// A canvas to draw a digit on, and the ten probabilities as bars. Python is sent a number and the drawing, gray bytes
// of SIDE × SIDE, and answers with that `number`, `probabilities`, none if it sees no digit, and a `message`.
const SIDE = 140, PATIENCE = 5000;  // pixels, shown twice as large; milliseconds
const ROW = `<span class="track"><span class="bar"></span></span><span class="share"></span>`;

function render({ model, el }) {
  el.classList.add("drawing-pad");
  el.innerHTML = `<canvas width="${SIDE}" height="${SIDE}" aria-label="draw a digit here"></canvas><div>
    ${[..."0123456789"].map((digit) => `<div class="row"><b>${digit}</b>${ROW}</div>`).join("")}
    <p role="status"></p><button>Clear</button></div>`;
  const canvas = el.querySelector("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
  let drawing = false, waiting = false, changed = false, number, timer;

  function wipe() {
    context.fillStyle = "white";
    context.fillRect(0, 0, SIDE, SIDE);
  }

  // One drawing is on its way at a time; of what is drawn meanwhile, the newest is sent when the answer has come or is
  // overdue, as when the kernel is busy or gone. Of two answers only that to the newest drawing is shown.
  function send() {
    changed = waiting;
    if (waiting) return;
    const gray = context.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 === 0);  // the red of RGBA
    waiting = true;
    number = Math.random();
    const message = "no answer yet: is the kernel busy or stopped?";
    timer = setTimeout(() => go({ probabilities: [], message }), PATIENCE);
    model.send({ number, side: SIDE }, undefined, [gray.buffer]);
  }

  function go(answer) {
    clearTimeout(timer);
    waiting = false;
    show(answer);
    if (changed) send();
  }

  function show({ probabilities, message }) {
    const best = probabilities.indexOf(Math.max(...probabilities));
    el.querySelectorAll(".row").forEach((row, digit) => {
      const percent = 100 * (probabilities[digit] ?? 0);
      row.classList.toggle("best", digit === best);
      row.querySelector(".bar").style.width = `${percent}%`;
      row.querySelector(".share").textContent = probabilities.length ? `${percent.toFixed(1)}%` : "";
    });
    el.querySelector("p").textContent = message;
    el.dataset.digit = probabilities.length ? best : "";
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
  }

  canvas.onpointerdown = (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    context.beginPath();
    context.moveTo(...point(event));
    context.lineTo(...point(event));
    context.stroke();
  };
  canvas.onpointermove = (event) => {
    if (!drawing) return;
    context.lineTo(...point(event));
    context.stroke();
    send();
  };
  canvas.onpointerup = canvas.onpointercancel = () => { if (drawing) { drawing = false; send(); } };
  el.querySelector("button").onclick = () => { wipe(); send(); };
  model.on("msg:custom", (answer) => { if (answer.number === number) go(answer); });

  context.lineWidth = SIDE / 13;
  context.lineCap = context.lineJoin = "round";
  wipe();
  show({ probabilities: [], message: "draw one digit, as large as you like" });
}

export default { render };
