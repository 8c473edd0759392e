// The API as this page uses it: one chat request whose answer comes as server-sent events, and small reads.

/** What the server says went wrong, in its own words. */
class ServerError extends Error {}

async function failure(response) {
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // no JSON: a proxy between us, perhaps
  }
  if (response.status === 429) message += " (the server is busy)";
  return new ServerError(message);
}

/** Yields the chunks of a chat completion; `signal` aborts it, which ends the answer on the server too. */
export async function* chat(body, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    yield chunk;
  }
  throw new ServerError("the connection ended before the answer did");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const line = text.slice(0, end);
      if (line.startsWith("data: ")) yield line.slice(6);
    }
  }
}

/** What is served: {id, state, max_model_len} each; a state is "loaded", "loading" or "unloaded". */
export async function models() {
  const response = await fetch("/v1/models");
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

/** Prometheus' text as {name: number}; of several models, their sum; names with other labels keep them. */
export async function metrics() {
  const response = await fetch("/metrics");
  if (!response.ok) throw await failure(response);
  const values = {};
  for (const line of (await response.text()).split("\n")) {
    if (line && !line.startsWith("#")) {
      const at = line.lastIndexOf(" ");
      const name = line.slice(0, at).replace(/\{model="(?:[^"\\]|\\.)*"\}$/, "");
      values[name] = (values[name] ?? 0) + Number(line.slice(at + 1));
    }
  }
  return values;
}
