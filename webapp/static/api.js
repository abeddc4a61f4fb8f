// Requests to this program. The token of the link, if there is one, goes with each of them.

let token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) history.replaceState(null, "", location.pathname);  // not in the history
try {  // for a reload; forgotten with the tab
  if (token) sessionStorage.setItem("token", token);
  token ??= sessionStorage.getItem("token");
} catch { /* the browser keeps nothing of this page */ }
const headers = token ? { Authorization: `Bearer ${token}` } : {};

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch {
    throw new Error("the program does not answer; is app.py still running?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `status ${response.status}` }));
  throw new Error(error);
}

export async function fetchModel() {
  return (await send("/model")).json();
}

// Calls onResult for each result as soon as it arrives.
export async function predict(files, onResult, signal) {
  const form = new FormData();
  for (const { file, path } of files) form.append("files", file, path);
  form.append("pictures", "true");
  const accept = { Accept: "application/x-ndjson" };
  const response = await send("/predict", { method: "POST", body: form, headers: accept, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const result = JSON.parse(line);
      if (result.kind === "failure") throw new Error(result.error);
      onResult(result);
    }
    if (done) return;
  }
}

export async function fetchHeatmap(picture, className, signal) {
  const form = new FormData();
  form.append("files", picture, "slice.png");
  form.append("class_name", className);
  return (await send("/heatmap", { method: "POST", body: form, signal })).blob();
}

export async function fetchTraining(digest) {
  return (await send(`/training/${digest}`)).blob();
}
