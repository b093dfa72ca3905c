// The reference client for browsers and Node: it keeps its cursor, drops what it has seen, comes back after a pause with
// jitter, renews its token, and acknowledges by cursor every 100 ms. What it sends it repeats until it is answered. No dependencies.
//
//   const client = connect({ url: 'ws://127.0.0.1:8080', token: () => TOKEN, device: 'phone-1', onItem: (item) => … });
//   await client.send({ to: 'business:sara', content: 'Hello' }); client.read([id]); client.close();
//
// Where there is no global WebSocket (Node before 22), give one: connect({ …, WebSocket: require('ws') }).

const SEEN = 10000; // Ids remembered: more than a server sends without an acknowledgement.
const ACK_EVERY_MS = 100;

export function connect(options) {
  const { url, token, device, onItem, onFrame = () => {}, onGap = () => {}, onClose = () => {} } = options;
  const Socket = options.WebSocket ?? globalThis.WebSocket;
  if (!Socket) throw new Error('no WebSocket here: give one as `WebSocket`');
  // Where the cursor is kept must outlive the client: localStorage, a file. It is saved after an item was taken.
  const store = options.store ?? { load: () => null, save: () => {} };
  let cursor = store.load();
  let acked = null, socket = null, stopped = false, failures = 0, afterMs = null;
  let heard = 0, silenceMs = 75000, retry = null, welcomed = false;
  const sends = new Map(); // By their ref: what is sent and not answered yet.
  const seen = new Set(); // A Set keeps the order of insertion: its first is its oldest.

  const say = (frame) => {
    if (socket && socket.readyState === 1) socket.send(JSON.stringify(frame));
  };

  async function open() {
    retry = null;
    afterMs = null;
    let query;
    try {
      query = new URLSearchParams({ device, access_token: await token() });
    } catch {
      return comeBack();
    }
    if (stopped) return;
    if (cursor) query.set('cursor', cursor);
    // A browser cannot set headers on a WebSocket, so the token goes with the address.
    const mine = new Socket(`${url.replace(/^http/, 'ws').replace(/\/$/, '')}/v1/ws?${query}`, 'esh3ar.v1');
    socket = mine;
    welcomed = false;
    acked = cursor;
    heard = Date.now();
    mine.onmessage = (event) => mine === socket && take(JSON.parse(event.data));
    mine.onerror = () => {};
    mine.onclose = (event) => mine === socket && closed(event.code);
  }

  function closed(code) {
    socket = null;
    // 42xx: stop. 40xx: come back. 41xx: come back with a new token, which `token()` is asked for anyway.
    if (code >= 4200 && code < 4300) stopped = true;
    if (stopped) return onClose(code);
    comeBack();
  }

  function comeBack() {
    // Twice as long after every failure, half of it by chance, so that a crowd does not come back as one.
    const most = 100 * 2 ** Math.min(++failures, 8);
    retry = setTimeout(open, afterMs ?? most / 2 + Math.random() * (most / 2));
  }

  function take(frame) {
    heard = Date.now();
    switch (frame.type) {
      case 'welcome':
        failures = 0;
        welcomed = true;
        silenceMs = frame.heartbeat_ms * 3;
        if (!frame.recovered) onGap(); // Something is gone for good: reload what is shown.
        if (!frame.recovered || !cursor) cursor = frame.cursor;
        // Whether these arrived is not known; a repeated ref is one message.
        for (const { message } of sends.values()) say(message);
        break;
      case 'accepted':
      case 'error':
        answered(frame);
        break;
      case 'messages':
        for (const item of frame.items) {
          if (!seen.has(item.id)) {
            seen.add(item.id);
            if (seen.size > SEEN) seen.delete(seen.values().next().value);
            onItem(item);
          }
          cursor = item.cursor;
        }
        store.save(cursor);
        break;
      case 'ping':
        say({ type: 'pong' });
        break;
      case 'reconnect':
        afterMs = frame.after_ms;
        break;
    }
    onFrame(frame);
  }

  function answered({ ref, id, problem }) {
    const send = sends.get(ref);
    if (!send) return;
    // Too much at once, or something is away: the same again, later.
    if (problem?.retry_after_ms !== undefined && !stopped) return void setTimeout(() => say(send.message), problem.retry_after_ms);
    sends.delete(ref);
    if (problem) send.reject(problem);
    else send.resolve(id);
  }

  const tick = setInterval(() => {
    if (!socket) return;
    if (options.ack !== false && cursor !== acked) {
      acked = cursor;
      say({ type: 'ack', cursor });
    }
    if (Date.now() - heard > silenceMs) {
      // Three heartbeats without a frame: the connection is dead and nobody said so.
      const dead = socket;
      closed(1006);
      dead.close();
    }
  }, ACK_EVERY_MS);

  open();
  return {
    get cursor() { return cursor; },
    read: (ids) => say({ type: 'read', ids }),
    /** Sends `{ to | conversation_id, content, content_type?, ref? }`; gives its id once it is durable, or throws the problem. */
    send: (message) => new Promise((resolve, reject) => {
      const ref = message.ref ?? crypto.randomUUID();
      sends.set(ref, { message: { ...message, type: 'send', ref }, resolve, reject });
      if (welcomed) say(sends.get(ref).message);
    }),
    /** Everything in a conversation is read up to here: a number of it, or a message's id. */
    readUpTo: (conversation_id, up_to) => say({ type: 'read', conversation_id, up_to }),
    typing: (conversation_id) => say({ type: 'typing', conversation_id }),
    /** Renews the token on the live socket, before it ends. */
    renew: async () => say({ type: 'token', token: await token() }),
    close() {
      stopped = true;
      clearInterval(tick);
      clearTimeout(retry);
      if (socket && options.ack !== false && cursor !== acked) say({ type: 'ack', cursor });
      if (socket) socket.close(1000);
    },
  };
}
