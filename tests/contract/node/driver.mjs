// Calls of the openai package for Node: one JSON call a line in, one JSON answer a line out.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(process.env.SDK_ROOT + "/");
const { OpenAI, toFile } = require("openai");

const client = (url, token) => new OpenAI({ apiKey: token, baseURL: `${url}/v1`, maxRetries: 0 });
const file = (b64, name) => toFile(Buffer.from(b64, "base64"), name, { type: "image/png" });

async function all(events) {
  const seen = [];
  for await (const event of events) seen.push(event);
  return seen;
}

/** The fields of an edit, with files for what came in base64. */
async function filed({ images, mask, ...fields }) {
  const files = await Promise.all(images.map((b64, i) => file(b64, `${i}.png`)));
  const masked = mask === undefined ? {} : { mask: await file(mask, "mask.png") };
  return { ...fields, ...masked, image: files.length === 1 ? files[0] : files };
}

const calls = {
  generate: ({ url, token, headers, ...fields }) =>
    client(url, token).images.generate(fields, { headers }),
  stream: async ({ url, token, ...fields }) =>
    all(await client(url, token).images.generate({ ...fields, stream: true })),
  edit: async ({ url, token, ...fields }) => client(url, token).images.edit(await filed(fields)),
  edit_stream: async ({ url, token, ...fields }) =>
    all(await client(url, token).images.edit({ ...(await filed(fields)), stream: true })),
  variation: async ({ url, token, image, ...fields }) =>
    client(url, token).images.createVariation({ ...fields, image: await file(image, "one.png") }),
  models: async ({ url, token }) => (await client(url, token).models.list()).data,
  model: ({ url, token, name }) => client(url, token).models.retrieve(name),
  chat: ({ url, token, ...fields }) => client(url, token).chat.completions.create(fields),
  chat_stream: async ({ url, token, ...fields }) =>
    all(await client(url, token).chat.completions.create({ ...fields, stream: true })),
};

function described(error) {
  const types = [];
  for (let at = error; at && at !== Object.prototype; at = Object.getPrototypeOf(at))
    if (Object.hasOwn(at, "constructor")) types.push(at.constructor.name);
  return {
    types,
    status: error.status ?? null,
    code: error.code ?? null,
    param: error.param ?? null,
    message: error.message,
    body: error.error ?? null,
    headers: error.headers ? Object.fromEntries(error.headers.entries()) : {},
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { call, arguments: given } = JSON.parse(line);
  let answer;
  try {
    answer = { value: await calls[call](given) };
  } catch (error) {
    answer = { error: described(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0); // at once, whatever connections a client keeps open
