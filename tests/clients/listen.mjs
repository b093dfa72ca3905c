// Runs the reference client and prints what it sees, a line a message.
import { connect } from "../../clients/reference.js";

connect({
  url: process.env.ESH3AR_URL,
  token: async () => process.env.ESH3AR_TOKEN,
  device: "node",
  onItem: (item) => process.stdout.write(`${item.content}\n`),
});
