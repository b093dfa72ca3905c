// Runs the reference client and prints what it sees, a line a message.
import { Client } from "../../clients/reference.js";

const url = process.env.ESH3AR_URL.replace(/^http/, "ws");
const client = new Client({
  url: `${url}/v1/ws`,
  device: "node",
  token: async () => process.env.ESH3AR_TOKEN,
  onMessage: (item) => process.stdout.write(`${item.content}\n`),
  backoff: { firstMs: 20, mostMs: 200 },
});
client.start();
