// An image that is larger than its frame: dragging moves it, and zooming keeps a place where it is.

const larger = (frame) => frame.scrollWidth > frame.clientWidth || frame.scrollHeight > frame.clientHeight;

export function pannable(frame) {
  let from = null;
  frame.addEventListener("pointerdown", (event) => {
    if (event.button || event.pointerType === "touch" || event.target.closest("input, button") || !larger(frame)) return;
    event.preventDefault();
    from = { x: event.clientX + frame.scrollLeft, y: event.clientY + frame.scrollTop };
    frame.setPointerCapture(event.pointerId);
    frame.classList.add("held");
  });
  frame.addEventListener("pointermove", (event) => {
    if (!from) return;
    frame.scrollTo(from.x - event.clientX, from.y - event.clientY);
  });
  const end = () => {
    from = null;
    frame.classList.remove("held");
  };
  frame.addEventListener("pointerup", end);
  frame.addEventListener("pointercancel", end);
  return { mark: () => frame.classList.toggle("larger", larger(frame)) };
}

// What is below the pointer, or in the middle, is there again when the function that this returns is called.
export function anchored(frame, at = null) {
  const box = frame.getBoundingClientRect();
  const x = at ? at.clientX - box.left : box.width / 2, y = at ? at.clientY - box.top : box.height / 2;
  const across = (frame.scrollLeft + x) / frame.scrollWidth, down = (frame.scrollTop + y) / frame.scrollHeight;
  return () => frame.scrollTo(across * frame.scrollWidth - x, down * frame.scrollHeight - y);
}
