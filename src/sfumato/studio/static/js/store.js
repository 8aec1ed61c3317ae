// What the page remembers over a reload; without storage it lasts as long as the page.

const PREFIX = "sfumato.";
const memory = new Map();

export function recall(name, fallback = null) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? (memory.has(name) ? memory.get(name) : fallback) : JSON.parse(text);
  } catch (error) {
    return memory.has(name) ? memory.get(name) : fallback;
  }
}

export function keep(name, value) {
  memory.set(name, value);
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch (error) {
    // storage is off or full: the page goes on with what it has in memory
  }
}
