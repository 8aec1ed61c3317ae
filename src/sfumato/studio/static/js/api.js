// The service's own API, and the studio's; every failure is an ApiError with the server's sentence.

export class ApiError extends Error {
  constructor(message, status, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

async function call(method, path, body) {
  const form = body instanceof FormData;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined || form ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : form ? body : JSON.stringify(body),
    });
  } catch (error) {
    throw new ApiError("the studio does not answer: is `sfumato studio` still running?", 0, null);
  }
  const json = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) {
    const refusal = json && json.error;
    throw new ApiError((refusal && refusal.message) || `the studio answered ${answer.status}`, answer.status, refusal && refusal.param);
  }
  return json;
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);
export const remove = (path) => call("DELETE", path);

export function query(path, values) {
  return `${path}?${new URLSearchParams(values)}`;
}

export async function upload(blob, name = "image.png") {
  const form = new FormData();
  form.append("file", blob, name);
  return post("/v1/uploads", form);
}

// Server-sent events with parsed data; returns a function that closes the stream.
export function events(path, handlers, onlost = () => {}) {
  const source = new EventSource(path);
  for (const [name, handle] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  }
  source.addEventListener("error", () => onlost(source.readyState));
  return () => source.close();
}
