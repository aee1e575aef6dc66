// Calls of the API with the key that its field has now; nothing else of this page knows it.

export async function refusal(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

export const key = () => document.getElementById("key").value.trim();

async function asked(method, path, body) {
  const headers = { authorization: `Bearer ${key()}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const sent = { method, headers, body: body === undefined ? body : JSON.stringify(body) };
  const response = await fetch(`../v1/${path}`, sent).catch(() => {
    throw Object.assign(new Error("The gateway does not answer; try again."), { status: 0 });
  });
  if (!response.ok) throw Object.assign(new Error(await refusal(response)), { status: response.status });
  return response;
}

// A seed has up to 63 bits, a number of this language 53: longer ones stay text.
const exact = (text) => JSON.parse(text.replace(/"seed": ?(\d{16,})/g, '"seed":"$1"'));

export const json = async (method, path, body) => exact(await (await asked(method, path, body)).text());

export const file = async (path) => (await asked("GET", path)).blob();
