// Requests with bodies of all sizes on 8 keep-alive sockets; prints "done", or fails at the first wrong answer.
import http from "node:http";
import { createHash } from "node:crypto";

const url = new URL(process.argv[2]);
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });

function ask(number) {
  const size = [0, 10, 5000, 150000][number % 4];
  const body = Buffer.alloc([0, 7, 3000, 90000][(number >> 2) % 4], number);
  const path = number % 3 ? `/length/${size}` : `/a/../length/${size}`;
  const headers = { host: "details:9080", "x-id": `${number}`, "content-length": body.length };
  const options = { agent, host: url.hostname, port: url.port, method: "POST", path, headers, timeout: 5000 };
  return new Promise((resolve, reject) => {
    const request = http.request(options, (response) => {
      let received = 0;
      response.on("data", (data) => (received += data.length));
      response.on("error", reject);
      response.on("end", () => {
        const sha256 = createHash("sha256").update(body).digest("hex");
        const told = response.headers;
        if (response.statusCode !== 200 || told["x-id"] !== `${number}` || told["x-sha256"] !== sha256) {
          reject(new Error(`${path}: ${response.statusCode} ${JSON.stringify(told)}`));
        } else if (received !== size) {
          reject(new Error(`${path}: ${received} bytes`));
        } else {
          resolve();
        }
      });
    });
    request.on("error", reject);
    request.on("timeout", () => reject(new Error(`${path}: no answer`)));
    request.end(body);
  });
}

let next = 0;
await Promise.all(
  Array.from({ length: 8 }, async () => {
    while (next < 800) await ask(next++);
  }),
);
agent.destroy();
console.log("done");
