// How often what changes all the time is drawn.

const SHARE = 3; // after a drawing, so many times as long is left to the rest of the page

/** A function that has `draw` called soon: no more often than the screen shows, and for a quarter of the time at most. */
export function paced(draw) {
  let isDue = false;
  let cost_ms = 0;
  const run = () => {
    isDue = false;
    const start = performance.now();
    draw();
    cost_ms = performance.now() - start;
  };
  return () => {
    if (isDue) return;
    isDue = true;
    setTimeout(() => requestAnimationFrame(run), SHARE * cost_ms);
  };
}
